"""The JSON schema of topology files: what it accepts and refuses is what is read and refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from dslth import config
from dslth.errors import ConfigError
from topology_files import EVERYTHING, SHIPPED, SMALL

ACCEPTS = {
    "topologies": Draft202012Validator(config.json_schema()),
    "peers": Draft202012Validator(config.json_schema_of(config.DeviceConfig, "profile")),
}
FILES = [(folder, name) for folder, names in SHIPPED.items() for name in names]
TEXTS = {
    "small": SMALL,
    "everything": EVERYTHING,
    "graph alone": "graph: {kind: ring, peers: 4}\n",
    "links": SMALL + "network: {link: lora}\npeers: {1: {link: {latency: 0.05, bandwidth: 250000, loss: 0.01}}}\n",
}


def accepted(folder: str, tree: Any) -> bool:
    return ACCEPTS[folder].is_valid(json.loads(json.dumps(tree)))  # where every key is text, as editors see it


def trees() -> Iterator[Any]:
    for folder, name in FILES:
        text = (config.shipped(folder) / name).read_text()  # type: ignore[arg-type]
        yield pytest.param(folder, yaml.safe_load(text), id=name)
    for name, text in TEXTS.items():
        yield pytest.param("topologies", yaml.safe_load(text), id=name)


def misspelt(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tree once for each of its keys, with that key misspelt."""
    for key, below in tree.items() if isinstance(tree, dict) else ():
        wrong = f"{key}x"
        yield wrong, {wrong if other == key else other: value for other, value in tree.items()}
        for name, changed in misspelt(below):
            yield name, tree | {key: changed}


@pytest.mark.parametrize(("folder", "tree"), list(trees()))
def test_it_accepts_what_is_read_and_refuses_each_misspelt_key(folder: str, tree: Any, tmp_path: Path) -> None:
    assert accepted(folder, tree)
    wrong = list(misspelt(tree))
    assert wrong
    for key, changed in wrong:
        assert not accepted(folder, changed), key
    if folder == "topologies":
        file = tmp_path / "misspelt.yaml"
        for _, changed in wrong:
            file.write_text(yaml.safe_dump(changed))
            with pytest.raises(ConfigError):
                config.load(file)


@pytest.mark.parametrize("preset", config.PRESETS)
def test_it_requires_nothing_that_a_preset_gives(preset: str) -> None:
    tree: dict[str, Any] = {"graph": {"kind": "ring", "peers": 4}, "experiment": {"preset": preset}}
    assert accepted("topologies", tree)
    assert not accepted("topologies", tree | {"experiment": {"preset": "nonsense"}})
    given = config.json_schema()["$defs"]["AlgorithmConfig"]
    assert "default" not in given["properties"]["scores"]  # which differs by preset
    assert given["properties"]["batch"]["default"] == 128


def test_it_describes_every_part() -> None:
    schema = config.json_schema()
    assert all(part.get("description") for part in schema["$defs"].values())
