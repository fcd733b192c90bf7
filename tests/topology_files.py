"""Small topology files, written and loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dslth import config
from dslth.config import RunConfig

RING = "graph: {kind: ring, peers: 4}\n"
SMALL = RING + "experiment: {model: {name: mlp}}\n"
EVERYTHING = """
graph: {kind: small-world, peers: 5, neighbours: 2, p: 0.1, seed: 3}
network: {addresses: ["a:1", "tcp://b:2"], host: "peer-{id}", port: 5}
experiment:
  preset: mce-pl
  seed: 12345678901234567890
  rounds: 3
  data: {name: cifar10, folder: ~/data, test_samples: 11, partition: {kind: counts, table: [[1, 2], [3, 4]]}}
  model: {name: cnn, output_elu: false}
  algorithm: {lr: 1.0e-07, density: [0.1, 0.25], lasso: 1.0e-20, exchange: false}
  deadline: 0.5
  evaluate_every: 4
peers:
  1: {profile: phone.yaml, density: {conv: 0.1, linear: 0.2}}
  4: {description: "no: yes #1", density: [0.1, 0.2], threads: 2}
"""

SHIPPED = {kind: sorted(path.name for path in config.shipped(kind).glob("*.yaml")) for kind in ("topologies", "peers")}


def load(file: Path, text: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    file.write_text(text, encoding="utf-8")
    return config.load(file, overrides)


def with_keys(**keys: str) -> str:
    return RING + "experiment:\n  model: {name: mlp}\n" + "".join(f"  {key}: {value}\n" for key, value in keys.items())
