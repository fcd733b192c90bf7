"""What mkdocs calls: the reference pages, made from settings, commands and docstrings, and formulas for any browser."""

import json
import re
from collections.abc import Iterator, Mapping
from html import unescape
from typing import Any

import latex2mathml.converter
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from dslth.cli import main, peer
from dslth.config import json_schema

ORDER = ("experiment", "graph", "network", "peers")
API = ("run", "load", "Run", "Model", "Topology", "DslthError")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages (mkdocs calls this)."""
    pages = {"keys": keys(), "commands": commands(), "api": api()}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_content(html: str, **given: Any) -> str:
    """Turn formulas into MathML, which browsers draw without a script from elsewhere (mkdocs calls this)."""
    html = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda found: _formula(found[1], "inline"), html)
    return re.sub(
        r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>',
        lambda found: _formula(found[1], "block"),
        html,
        flags=re.DOTALL,
    )


def _formula(latex: str, display: str) -> str:
    made: str = latex2mathml.converter.convert(unescape(latex), display=display)
    return made


def api() -> str:
    """Write the page of the Python API."""
    parts = "\n\n".join(f"::: dslth.api.{name}" for name in API if name not in ("DslthError", "Topology"))
    return f"# Python\n\n[How to use it](../python.md).\n\n{parts}\n\n::: dslth.topology.Topology\n\n::: dslth.errors\n"


def commands() -> str:
    """Write the page of both programs, as their ``--help`` says it."""
    pages = []
    for name, app in (("dslth", main.app), ("dslth-peer", peer.app)):
        command = typer.main.get_command(app)
        text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name=name), name=name)
        pages.append(re.sub(r"^#", "##", text, flags=re.MULTILINE))
    text = "\n\n".join(pages).replace("```console\n$ ", "```text\n")
    return f"# Commands\n\n{text}"


def keys() -> str:
    """Write the page of all keys of a topology file."""
    schema = json_schema()
    parts: Mapping[str, Any] = schema["$defs"]
    named = re.findall(r"#/\$defs/(\w+)", json.dumps([schema["properties"][key] for key in ORDER]))
    order = list(dict.fromkeys(name for start in named for name in _inside(start, parts)))
    sections = [_section("A topology file", schema, parts), *(_section(name, parts[name], parts) for name in order)]
    return (
        "# Keys of a topology file\n\nMade from the schema that `dslth schema` prints. What presets give is in "
        "[the algorithm](../explanation/algorithm.md#presets).\n\n" + "\n\n".join(sections) + "\n"
    )


def _inside(name: str, parts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a section, and those below it."""
    if parts[name].get("type") == "object":
        yield name
    for below in re.findall(r"#/\$defs/(\w+)", json.dumps(parts[name])):
        yield from _inside(below, parts)


def _section(name: str, part: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    title = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.removesuffix("Config"))
    text = re.sub(r"``([^`]+)``", r"`\1`", part.get("description", ""))
    rows = [
        f"| `{key}` | {_kind(of, parts)} | {_default(key, of, part)} |"
        for key, of in part.get("properties", {}).items()
    ]
    table = "\n".join(["| key | value | default |", "| --- | --- | --- |", *rows])
    return f"## {title}\n\n{text}\n\n{table}"


def _kind(of: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    return " or ".join(dict.fromkeys(_kinds(of, parts)))


def _kinds(of: Mapping[str, Any], parts: Mapping[str, Any]) -> Iterator[str]:
    if "$ref" in of:
        name = of["$ref"].rpartition("/")[2]
        if parts[name].get("type") == "object":
            title = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.removesuffix("Config"))
            yield f"[{title}](#{title.lower().replace(' ', '-')})"
        else:
            yield from _kinds(parts[name], parts)
    elif "anyOf" in of or "oneOf" in of:
        for choice in of.get("anyOf") or of["oneOf"]:
            yield from _kinds(choice, parts)
    elif "enum" in of:
        yield ", ".join(f"`{value}`" for value in of["enum"])
    elif "const" in of:
        yield f"`{of['const']}`"
    elif of.get("type") == "array":
        items = of.get("items") or {"anyOf": of.get("prefixItems", [])}
        yield f"list of {_kind(items, parts) or 'values'}"
    elif of.get("type") == "object":
        values = of.get("additionalProperties")
        yield f"keys with {_kind(values, parts)}" if isinstance(values, dict) else "keys"
    elif of.get("type") != "null":
        yield _words(of)


def _words(of: Mapping[str, Any]) -> str:
    """Return the type of a plain value, with its bounds."""
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    said = [f"{word} {of[key]:g}" for key, word in bounds.items() if key in of and abs(of[key]) < 2**31 - 1]
    return " ".join([names.get(of.get("type", ""), "value"), *said])


def _default(key: str, of: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    if key in part.get("required", ()):
        return "required"
    if "default" not in of:
        return "by the preset" if part.get("title") in ("ModelConfig", "AlgorithmConfig", "ExperimentConfig") else ""
    default = of["default"]
    return "" if default is None or isinstance(default, dict | list) else f"`{str(default).lower()}`"
