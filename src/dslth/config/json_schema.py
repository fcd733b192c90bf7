"""What the files that people write may contain, as a JSON schema for editors: made from the settings themselves."""

from collections.abc import Iterable
from typing import Any

from dslth.config.schema import PRESETS, RunConfig, Settings

__all__ = ["json_schema", "json_schema_of"]

DIALECT = {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a topology file as a person writes it: what its preset gives may be left out."""
    schema = RunConfig.model_json_schema()
    parts = schema["$defs"]
    _given(schema, ["experiment"])
    _given(parts["ExperimentConfig"], {section for preset in PRESETS.values() for section in preset})
    for section, part in (("model", "ModelConfig"), ("algorithm", "AlgorithmConfig")):
        _given(parts[part], {key for preset in PRESETS.values() for key in preset[section]})
    parts["PeerConfig"]["properties"]["profile"] = {
        "type": "string",
        "description": "A file beside this one, or the name of a profile that comes with dslth.",
    }
    schema["properties"]["peers"]["propertyNames"] = {"pattern": "^[0-9]+$"}
    return DIALECT | schema | {"title": "dslth topology"}


def json_schema_of(settings: type[Settings], title: str) -> dict[str, Any]:
    """Return the JSON schema of a file that says no more and no less than its settings do."""
    return DIALECT | settings.model_json_schema() | {"title": f"dslth {title}"}


def _given(part: dict[str, Any], keys: Iterable[str]) -> None:
    """Take back that keys are required, and what they are by default: the presets say so."""
    for key in keys:
        part["properties"][key].pop("default", None)
    if required := sorted(set(part.pop("required", ())) - set(keys)):
        part["required"] = required
