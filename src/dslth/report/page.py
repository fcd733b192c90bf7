"""One page with the pictures of runs and their tables, which opens offline: the drawing library is in it."""

import json
from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dslth import files
from dslth.errors import DslthError, OutputError
from dslth.report import figures, pictures
from dslth.report.figures import Opened
from dslth.report.pictures import PALETTE, Picture
from dslth.terminal import say

__all__ = ["add_to", "can_draw", "check", "content", "page", "picture_file", "write"]

MANY = 200
"""Peers up to which a run draws its page unasked: with more it takes long, and shows little."""
MOST_ROWS = 2000
"""Of a picture's table: more would make the page slow. The rest is in the run folder."""
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
MISSING = "pictures of runs take vl-convert-python: pip install 'dslth[report]'"
VERSION = "6.4"
"""Of Vega-Lite."""
EXPORT = "window.vegaEmbed = vegaEmbed;"


def content(folders: Sequence[Path]) -> dict[str, Any]:
    """Return what the page shows of some run folders; raises MissingFileError."""
    runs = [Opened.of(folder) for folder in folders]
    shown = [_section("Side by side", runs, pictures.compared(runs))] if len(runs) > 1 else []
    shown += [_section(run.name, [run], pictures.of_run(run)) for run in runs]
    return {"title": " and ".join(run.name for run in runs), "sections": shown}


def _section(title: str, runs: Sequence[Opened], made: Sequence[Picture]) -> dict[str, Any]:
    tables = {"figures": figures.facts(runs), "settings": figures.differing(runs)}
    return {"title": title, **tables, "pictures": _drawn(made)}


def _drawn(made: Sequence[Picture]) -> list[dict[str, Any]]:
    return [{"title": p.title, "words": p.words, "spec": p.whole(), "table": _table(p)} for p in made]


def _table(picture: Picture) -> dict[str, Any]:
    columns = [name for name in picture.rows[0] if name not in ("x", "y")] if picture.rows else []
    rows = [[row[name] for name in columns] for row in picture.rows[:MOST_ROWS]]
    return {"columns": columns, "rows": rows, "more": max(0, len(picture.rows) - MOST_ROWS)}


def page(shown: dict[str, Any], *, live: bool = False) -> str:
    """Return the page; a ``live`` one asks its server for what is new.

    Raises DslthError without the package that the pictures take.
    """
    known = json.dumps(shown | {"palette": PALETTE, "live": live}, separators=(",", ":"))
    data = known.replace("<", "\\u003c")  # nothing in a run's files ends the script that holds them
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(shown["title"])} – dslth</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n<header><h1></h1><button hidden>light or dark</button></header>\n<main></main>\n"
        f"<footer>dslth {escape(version('dslth'))}; pictures by Vega-Lite</footer>\n"
        f'<script type="application/json" id="shown">{data}</script>\n'
        f"<script>{_library()}</script>\n<script>{SCRIPT}</script>\n</html>\n"
    )


def can_draw() -> bool:
    """Whether the package is installed that the pictures take."""
    return find_spec("vl_convert") is not None


def check() -> None:
    """Raise DslthError if the package is missing that the pictures take."""
    if not can_draw():
        raise DslthError(MISSING)


def add_to(folder: Path) -> None:
    """Write a run's page into its folder; if that fails, say so: it can be written later."""
    try:
        write(folder / "report.html", [folder])
    except DslthError as error:
        say(f"dslth: no report.html: {error}")


def write(path: Path, folders: Sequence[Path]) -> int:
    """Write the page of some run folders; return its bytes. Raises MissingFileError, OutputError, DslthError."""
    return _written(path, page(content(folders)).encode())


def picture_file(path: Path, folders: Sequence[Path], *, by_bytes: bool) -> int:
    """Draw runs side by side into a file, ``.png``, ``.svg`` or ``.pdf``; return its bytes."""
    import vl_convert

    _library()
    by_round, against_bytes = pictures.compared([Opened.of(folder) for folder in folders])
    spec = (against_bytes if by_bytes else by_round).whole()
    match path.suffix:
        case ".png":
            drawn: bytes = vl_convert.vegalite_to_png(spec, vl_version=VERSION, ppi=300)
        case ".svg":
            drawn = vl_convert.vegalite_to_svg(spec, vl_version=VERSION).encode()
        case ".pdf":
            drawn = vl_convert.vegalite_to_pdf(spec, vl_version=VERSION)
        case _:
            raise OutputError(f"{path}: expected a file named .png, .svg or .pdf")
    return _written(path, drawn)


def _library() -> str:
    """Return the drawing library: Vega, Vega-Lite and Vega-Embed in one script."""
    try:
        import vl_convert
    except ImportError:
        raise DslthError(MISSING) from None
    script: str = vl_convert.javascript_bundle(EXPORT, vl_version=VERSION)
    return script.replace("</script", "<\\/script")


def _written(path: Path, made: bytes) -> int:
    try:
        files.replace(path, made)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    return len(made)
