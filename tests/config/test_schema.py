"""Settings: written back, shared by all peers, addresses."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dslth import config
from dslth.config import NetworkConfig, RunConfig
from dslth.errors import ConfigError
from topology_files import EVERYTHING, SHIPPED, SMALL, load, with_keys


def test_settings_cannot_be_changed(file: Path) -> None:
    run = load(file, SMALL)
    with pytest.raises(ValueError, match="frozen"):
        run.experiment.seed = 2  # type: ignore[misc]


# --- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        SMALL,
        EVERYTHING,
        with_keys(preset="mce-pl"),
        with_keys(data="{partition: {kind: dirichlet, alpha: 0.3, fraction: 0.1}}"),
        "graph: {kind: edges, peers: 3, edges: [[0, 1], [1, 2]]}\nexperiment: {model: {name: resnet8}}\n",
        "graph: {kind: file, file: graph.txt}\nexperiment: {model: {name: cnn}}\n",
        SMALL + "network: {base_port: 5000}\n",
        SMALL + "network: {link: lora}\npeers: {1: {link: {latency: 0.05, bandwidth: 250e3, loss: 0.01}}}\n",
    ],
    ids=["small", "everything", "preset", "dirichlet", "edges", "graph-file", "network", "links"],
)
def test_a_run_written_and_read_again_is_the_same(file: Path, tmp_path: Path, text: str) -> None:
    run = load(file, text)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert load(elsewhere / "again.yaml", run.to_yaml()) == run


@pytest.mark.parametrize("name", SHIPPED["topologies"])
def test_a_shipped_run_written_and_read_again_is_the_same(file: Path, name: str) -> None:
    run = config.load(name)
    assert load(file, run.to_yaml()) == run


def test_a_run_with_an_own_profile_stands_alone(file: Path, tmp_path: Path) -> None:
    (tmp_path / "watch.yaml").write_text("batch: 3")
    run = load(file, SMALL + "peers: {0: {profile: watch.yaml}}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert load(elsewhere / "again.yaml", run.to_yaml()) == run


def test_a_profiles_key_taken_back_by_null_stays_taken_back(file: Path) -> None:
    run = load(file, SMALL + "peers: {0: {profile: phone, density: null}}\n")
    assert run.device(0).density is None
    assert load(file, run.to_yaml()) == run


def test_a_written_run_spells_out_every_default(file: Path) -> None:
    written = yaml.safe_load(load(file, SMALL).to_yaml())
    assert list(written) == ["graph", "experiment", "peers"]
    experiment = written["experiment"]
    assert set(experiment) == set(config.ExperimentConfig.model_fields)
    assert set(experiment["algorithm"]) == set(config.AlgorithmConfig.model_fields) - {"epsilon"}  # which is not set
    assert set(experiment["model"]) == set(config.ModelConfig.model_fields) - {"options"}  # those of own code


# --- identity -------------------------------------------------------------------------------------------------------


def shared(run: RunConfig, edges: str = "abc") -> dict[str, str]:
    return {key.removeprefix("experiment."): value for key, value in config.identity(run, edges).items()}


def differing(one: RunConfig, other: RunConfig) -> set[str]:
    a, b = shared(one), shared(other)
    return {key for key in a | b if a.get(key) != b.get(key)}


@pytest.mark.parametrize(
    "overrides",
    [
        {"experiment": {"rounds": 99}},
        {"experiment": {"codec": "bitpack"}},
        {"experiment": {"deadline": 3.5}},
        {"experiment": {"evaluate_every": 7}},
        {"experiment": {"data": {"folder": "/somewhere"}}},
        {"experiment": {"data": {"test_samples": 7}}},
        {"network": {"base_port": 5000}},
        {"network": {"addresses": ["a:1"]}},
        {"network": {"link": "lora"}},
        {"peers": {0: {"link": {"latency": 0.5}}}},
        {"peers": {0: {"density": 0.1, "batch": 3, "threads": 2, "speed": 0.5}}},
        {"peers": {0: {"profile": "phone"}}},
    ],
    ids=str,
)
def test_a_peer_may_choose_this_for_itself(file: Path, overrides: dict[str, Any]) -> None:
    assert config.identity(load(file, SMALL, overrides), "abc") == config.identity(load(file, SMALL), "abc")


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ({"seed": 2}, ["seed"]),
        ({"model": {"name": "cnn"}}, ["model.name"]),
        ({"model": {"init": "default"}}, ["model.init"]),
        ({"model": {"norm": "local-response"}}, ["model.norm"]),
        ({"model": {"output_elu": True}}, ["model.output_elu"]),
        ({"data": {"name": "mnist"}}, ["data.name"]),
        ({"data": {"partition": {"classes_per_peer": 2}}}, ["data.partition.classes_per_peer"]),
        ({"data": {"partition": {"fraction": 0.5}}}, ["data.partition.fraction"]),
        ({"data": {"partition": {"kind": "iid"}}}, ["data.partition.kind", "data.partition.classes_per_peer"]),
        ({"data": {"validation": 0.1}}, ["data.validation"]),
        ({"algorithm": {"lr": 0.125}}, ["algorithm.lr"]),
        ({"algorithm": {"weight_decay": 0.125}}, ["algorithm.weight_decay"]),
        ({"algorithm": {"fine_tune_lr": 0.125}}, ["algorithm.fine_tune_lr"]),
        ({"algorithm": {"local_steps": 9}}, ["algorithm.local_steps"]),
        ({"algorithm": {"batch": 9}}, ["algorithm.batch"]),
        ({"algorithm": {"lasso": 0.125}}, ["algorithm.lasso"]),
        ({"algorithm": {"min_filter_weights": 20}}, ["algorithm.min_filter_weights"]),
        ({"algorithm": {"scores": "own"}}, ["algorithm.scores"]),
        ({"algorithm": {"heavy_ball": 0.5}}, ["algorithm.heavy_ball"]),
        ({"algorithm": {"relative": True}}, ["algorithm.relative"]),
        ({"algorithm": {"schedule": "linear"}}, ["algorithm.schedule"]),
        ({"algorithm": {"lift": 2.0}}, ["algorithm.lift"]),
        ({"algorithm": {"exchange": False}}, ["algorithm.exchange"]),
        ({"algorithm": {"density": {"conv": 0.125, "linear": 0.9}}}, ["algorithm.density.conv"]),
    ],
    ids=str,
)
def test_all_peers_must_agree_on_this(file: Path, overrides: dict[str, Any], keys: list[str]) -> None:
    text = """
graph: {kind: ring, peers: 4}
experiment:
  model: {name: mlp}
  data: {partition: {kind: classes, classes_per_peer: 4}}
  algorithm: {density: {conv: 0.5, linear: 0.9}, scores: common}
"""
    assert differing(load(file, text), load(file, text, {"experiment": overrides})) == set(keys)


def test_all_peers_must_agree_on_the_counts_and_on_the_graph(file: Path) -> None:
    tables = [load(file, with_keys(data=f"{{partition: {{kind: counts, table: [[1, {n}]]}}}}")) for n in (2, 3)]
    assert differing(*tables) == {"data.partition.table"}
    run = load(file, SMALL)
    assert shared(run)["topology"] == "abc"
    assert shared(run) | {"topology": "def"} == shared(run, "def")


def test_a_preset_is_what_it_sets_not_its_name(file: Path) -> None:
    spelled_out = yaml.safe_load(load(file, with_keys(preset="mce-pl")).to_yaml())
    spelled_out["experiment"]["preset"] = "signed"
    assert differing(load(file, with_keys(preset="mce-pl")), load(file, yaml.safe_dump(spelled_out))) == set()


def test_identity_is_flat_text(file: Path) -> None:
    found = config.identity(load(file, EVERYTHING), "abc")
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in found.items())
    assert shared(load(file, EVERYTHING))["seed"] == "12345678901234567890"


# --- links ----------------------------------------------------------------------------------------------------------


def test_a_peers_own_link_wins_over_the_networks(file: Path) -> None:
    run = load(file, SMALL + "network: {link: wifi}\npeers: {1: {link: lora}, 2: {batch: 3}, 3: {link: {loss: 0.1}}}\n")
    assert [run.link(peer) for peer in range(4)] == ["wifi", "lora", "wifi", config.LinkConfig(loss=0.1)]
    assert run.has_links


@pytest.mark.parametrize("text", ["", "network: {base_port: 5000}\n", "peers: {1: {batch: 3}}\n"])
def test_a_file_that_names_no_link_has_none(file: Path, text: str) -> None:
    run = load(file, SMALL + text)
    assert run.link(1) == "none"
    assert not run.has_links


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("lorra", "network.link: input should be 'none', 'lora', 'nb-iot', 'lte-m', 'wifi' or 'ethernet', got 'lorra'"),
        ("{delay: 1}", "network.link.delay: unknown key"),
        ("{loss: 1}", "network.link.loss: input should be less than or equal to 0.9, got 1"),
        ("{bandwidth: fast}", "network.link.bandwidth: input should be a valid number"),
        ("3", "network.link: input should be 'none', "),
    ],
)
def test_a_wrong_link_is_named(file: Path, link: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(file, SMALL + f"network: {{link: {link}}}\n")
    assert said in str(refused.value)
    assert "more)" not in str(refused.value)


# --- network --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "peer", "address"),
    [
        (NetworkConfig(), 0, "tcp://127.0.0.1:47100"),
        (NetworkConfig(), 3, "tcp://127.0.0.1:47103"),
        (NetworkConfig(host="10.0.0.7", base_port=5000), 12, "tcp://10.0.0.7:5012"),
        (NetworkConfig(host="peer-{id}", port=47100), 12, "tcp://peer-12:47100"),
        (NetworkConfig(host="{id}.row{id}.example.org", base_port=80), 2, "tcp://2.row2.example.org:82"),
        (NetworkConfig(host="peer-{id}", port=9, base_port=5), 1, "tcp://peer-1:9"),
        (NetworkConfig(addresses=("a:1", "b:2")), 1, "tcp://b:2"),
        (NetworkConfig(addresses=("a:1", "tcp://[::1]:2"), port=9), 1, "tcp://[::1]:2"),
        (NetworkConfig(base_port=65535), 0, "tcp://127.0.0.1:65535"),
    ],
)
def test_address(network: NetworkConfig, peer: int, address: str) -> None:
    assert network.address(peer) == address


def test_a_peer_without_an_address_is_named() -> None:
    with pytest.raises(ConfigError, match=r"network\.addresses: 2 addresses, but there is a peer 2"):
        NetworkConfig(addresses=("a:1", "b:2")).address(2)


def test_a_port_beyond_the_last_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"network\.base_port: 65530 leaves no port for peer 6"):
        NetworkConfig(base_port=65530).address(6)
