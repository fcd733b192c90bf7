"""Topology files: what is read, merged and refused; the files that come with dslth; the data folder."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dslth import config, topology
from dslth.config import ByKind, NetworkConfig
from dslth.errors import ConfigError, DslthError, MissingFileError, UnknownPeerError
from topology_files import EVERYTHING, RING, SHIPPED, SMALL, load, with_keys

# --- reading --------------------------------------------------------------------------------------------------------


def test_a_small_file_gets_all_defaults(file: Path) -> None:
    run = load(file, SMALL)
    assert run.graph == config.Ring(kind="ring", peers=4)
    assert run.network is None
    assert run.peers == {}
    assert run.device(3) == config.PeerConfig()
    experiment = run.experiment
    found = (experiment.seed, experiment.preset, experiment.model.name, experiment.codec)
    assert found == (1, "signed", "mlp", "auto")
    assert experiment.data.partition == config.ClassesPartition(kind="classes", classes_per_peer=4)


def test_a_graph_alone_is_a_file(file: Path) -> None:
    run = load(file, RING)
    assert run == load(file, RING + "experiment: {}\n") == load(file, RING + "experiment: {model: {name: cnn}}\n")


def test_a_file_is_found_by_path_or_shipped_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert config.load("ring") == config.load("ring.yaml") == config.load(config.shipped("topologies") / "ring.yaml")
    assert load(file, SMALL) == config.load("mine.yaml") == config.load(str(file))


def test_a_file_in_the_working_folder_wins_over_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = load(tmp_path / "ring.yaml", SMALL)
    assert own.graph == config.Ring(kind="ring", peers=4)
    assert config.load("ring.yaml") == own


@pytest.mark.parametrize("name", ["absent", "absent.yaml", ".", 300 * "long", "a\0b"])
def test_a_missing_file_is_named_with_the_shipped_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=re.escape(repr(str(tmp_path / name)))) as caught:
        config.load(tmp_path / name)
    assert all(Path(shipped).stem in str(caught.value) for shipped in SHIPPED["topologies"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SMALL + "grph: 1\n", "grph: unknown key"),
        (RING + "experiment: {model: {name: mlp}, sede: 1}\n", "experiment.sede: unknown key"),
        (RING + "experiment: {model: {name: mlp, depth: 3}}\n", "experiment.model.depth: unknown key"),
        (RING + "experiment: {model: {name: mlp}, algorithm: {lrr: 3}}\n", "experiment.algorithm.lrr: unknown key"),
        (RING + "experiment: {model: {name: mlp}, data: {nme: digits}}\n", "experiment.data.nme: unknown key"),
        (SMALL + "network: {prot: 1}\n", "network.prot: unknown key"),
        (SMALL + "peers: {0: {speeed: 1}}\n", "peers.0.speeed: unknown key"),
        ("graph: {kind: ring, peers: 4, degree: 2}\nexperiment: {model: {name: mlp}}\n", "degree: unknown key"),
        ("graph: {kind: ring, peers: 4, seed: 2}\nexperiment: {model: {name: mlp}}\n", "seed: unknown key"),
    ],
)
def test_an_unknown_key_is_named(file: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        load(file, text)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        (with_keys(seed="-1"), "experiment.seed", "-1"),
        (with_keys(seed="18446744073709551616"), "experiment.seed", "18446744073709551616"),
        (with_keys(rounds="2147483648"), "experiment.rounds", "2147483648"),
        (with_keys(seed="abc"), "experiment.seed", "'abc'"),
        (with_keys(rounds="0"), "experiment.rounds", "0"),
        (with_keys(rounds="2.5"), "experiment.rounds", "2.5"),
        (with_keys(deadline="0"), "experiment.deadline", "0"),
        (with_keys(deadline=".inf"), "experiment.deadline", "inf"),
        (with_keys(deadline=".nan"), "experiment.deadline", "nan"),
        (with_keys(preset="fast"), "experiment.preset", "'fast'"),
        (with_keys(codec="zip"), "experiment.codec", "'zip'"),
        (with_keys(evaluate_every="0"), "experiment.evaluate_every", "0"),
        (with_keys(algorithm="{density: 1.5}"), "experiment.algorithm.density", "1.5"),
        (with_keys(algorithm="{density: 0}"), "experiment.algorithm.density", "0"),
        (with_keys(algorithm="{density: abc}"), "experiment.algorithm.density", "'abc'"),
        (with_keys(algorithm="{lr: 0}"), "experiment.algorithm.lr", "0"),
        (with_keys(algorithm="{local_steps: 0}"), "experiment.algorithm.local_steps", "0"),
        (with_keys(algorithm="{epsilon: 1000}"), "experiment.algorithm.epsilon", "1000"),
        (with_keys(algorithm="{epsilon: 1.0e-300}"), "experiment.algorithm.epsilon", "1e-300"),
        (with_keys(checkpoint_every="2147483648"), "experiment.checkpoint_every", "2147483648"),
        (with_keys(staleness="2147483648"), "experiment.staleness", "2147483648"),
        (with_keys(algorithm="{scores: mine}"), "experiment.algorithm.scores", "'mine'"),
        (with_keys(algorithm=""), "experiment.algorithm", "None"),
        (with_keys(data="{name: imagenet}"), "experiment.data.name", "'imagenet'"),
        (with_keys(data="{test_samples: 0}"), "experiment.data.test_samples", "0"),
        (with_keys(data="{validation: 1}"), "experiment.data.validation", "1"),
        (
            with_keys(data="{validation: 0.1, partition: {kind: drawn, classes_per_peer: 2, samples: 9}}"),
            "experiment.data",
            "not drawn",
        ),
        (with_keys(data="{partition: {kind: iid, fraction: 1.1}}"), "experiment.data.partition.fraction", "1.1"),
        (with_keys(data="{partition: {kind: dirichlet, alpha: 0}}"), "experiment.data.partition.alpha", "0"),
        (with_keys(data="{partition: {kind: some}}"), "experiment.data.partition", "some"),
        (
            with_keys(data="{partition: {kind: counts, table: [[1, -1]]}}"),
            "experiment.data.partition.table.0.1",
            "-1",
        ),
        (with_keys(data="{partition: {kind: counts, table: [[1, 2], [3]]}}"), "experiment.data.partition", "[3]"),
        (with_keys(data="{partition: {kind: counts, table: []}}"), "experiment.data.partition", "[]"),
        (RING + "experiment: {model: {name: vgg}}\n", "experiment.model.name", "'vgg'"),
        (RING + "experiment: {seed: -0x" + 9000 * "f" + "}\n", "experiment.seed", "a number of too many digits"),
        (RING + "experiment: mlp\n", "experiment", "'mlp'"),
        (RING + "experiment:\n", "experiment", "None"),
        ("graph: {kind: ring, peers: 2}\nexperiment: {model: {name: mlp}}\n", "graph.peers", "2"),
        ("graph: {kind: torus, rows: 2, columns: 3}\nexperiment: {model: {name: mlp}}\n", "graph.rows", "2"),
        ("graph: {kind: bus, peers: 4}\nexperiment: {model: {name: mlp}}\n", "graph", "bus"),
        ("graph: ring\nexperiment: {model: {name: mlp}}\n", "graph", "'ring'"),
        (SMALL + "network: {base_port: 65536}\n", "network.base_port", "65536"),
        (SMALL + "network: {port: 0}\n", "network.port", "0"),
        (SMALL + "network: {port: 47100}\n", "network: all peers would be at 127.0.0.1:47100; give base_port", "47100"),
        (SMALL + "network: {addresses: [a:1, b:1, 'tcp://a:1']}\n", "network: addresses: peers 0 and 2", "a:1"),
        (SMALL + "network: {addresses: [a:1, 'ipc:///tmp/b']}\n", "network.addresses.1: peers talk over tcp", "ipc"),
        (SMALL + "network: {addresses: ['inproc://b']}\n", "network.addresses.0", "inproc"),
        (SMALL + "network: {addresses: [a]}\n", "network.addresses.0: expected HOST:PORT", "'a'"),
        (SMALL + "network: {addresses: ['a:0']}\n", "network.addresses.0: expected HOST:PORT", "'a:0'"),
        (SMALL + "network: {addresses: ['a:65536']}\n", "network.addresses.0: expected HOST:PORT", "'a:65536'"),
        (SMALL + "network: {addresses: ['*:47100']}\n", "network.addresses.0: expected a host name", "'*:47100'"),
        (SMALL + "network: {addresses: ['a b:47100']}\n", "network.addresses.0: expected a host name", "'a b:47100'"),
        (SMALL + "network: {addresses: [':47100']}\n", "network.addresses.0: expected a host name", "':47100'"),
        (SMALL + "network: {addresses: ['10.0.0.700:1']}\n", "network.addresses.0", "10.0.0.700:1"),
        (SMALL + "network: {addresses: ['a-{id}:1']}\n", "network.addresses.0", "a-{id}:1"),
        (SMALL + "network: {host: 'peer-{number}'}\n", "network.host", "'peer-{number}'"),
        (SMALL + "network: {host: ''}\n", "network.host", "''"),
        (SMALL + "network: {host: 'tcp://a'}\n", "network.host", "'tcp://a'"),
        (SMALL + "peers: {first: {batch: 3}}\n", "peers.first", "'first'"),
        (SMALL + "peers: {0: {speed: 2}}\n", "peers.0.speed", "2"),
        (SMALL + "peers: {0: {speed: 1.0e-300}}\n", "peers.0.speed", "1e-300"),
        (SMALL + "peers: {0: {profile: 3}}\n", "peers.0.profile", "3"),
        (SMALL + "peers: {0: {profile: null}}\n", "peers.0.profile", "None"),
        (SMALL + "peers: {0: {batch: 0}}\n", "peers.0.batch", "0"),
        (SMALL + "peers: [1, 2]\n", "peers", "[1, 2]"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(file: Path, text: str, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf": {re.escape(key)}\b.*{re.escape(value)}") as caught:
        load(file, text)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("experiment: {model: {name: mlp}}\n", "graph"),
        ("graph: {kind: ring}\nexperiment: {model: {name: mlp}}\n", "graph.peers"),
        ("graph: {kind: small-world, peers: 5, p: 0.1}\nexperiment: {model: {name: mlp}}\n", "neighbours"),
        (with_keys(data="{partition: {kind: classes}}"), "classes_per_peer"),
    ],
)
def test_a_missing_key_is_named(file: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}(\.\w+)?: missing"):
        load(file, text)


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"", ConfigError, "expected keys and values at the top"),
        (b"- graph\n- experiment\n", ConfigError, "expected keys and values at the top, got list"),
        (b"graph: {kind: ring\n\nexperiment: [}\n", ConfigError, ":3: not YAML"),
        (b"graph: \x01", ConfigError, "not YAML"),
        (b"a: !!python/object/apply:os.getcwd []\n", ConfigError, "not YAML"),
        (b"\xff\xfe\x00", MissingFileError, "not a text file"),
        (b"graph: " + 20_000 * b"[", ConfigError, "not YAML"),
        (b"graph: " + 20_000 * b"[" + 20_000 * b"]", ConfigError, "not YAML"),
        (b"graph: !!timestamp yes\n", ConfigError, "not YAML"),
        (b"graph: !!int ''\n", ConfigError, "not YAML"),
        (b"graph: &a [*a]\n", ConfigError, "holds more than 1,000,000 values, or itself"),
        (b"graph: &a {x: 1, " + 60 * b"<<: *a, " + b"}\n", ConfigError, "or itself"),
        (b'graph: {kind: file, file: "a\\0b"}\n', ConfigError, "graph.file: holds characters"),
        (b'graph: {kind: ring, peers: 3}\npeers: {0: {kind: "\\ud800"}}\n', ConfigError, "peers.0.kind: holds"),
        (b"graph: {kind: ring, peers: 3}\npeers: {0: {device: gpu}}\n", ConfigError, "peers.0.device: expected cpu"),
    ],
)
def test_a_file_that_is_no_yaml_of_keys_is_refused(
    file: Path, content: bytes, error: type[Exception], says: str
) -> None:
    file.write_bytes(content)
    with pytest.raises(error, match=re.escape(says)) as caught:
        config.load(file)
    assert str(file) in str(caught.value)


def _bomb(depth: int, item: str) -> str:
    """Write lines of which each stands for nine times the one before."""
    lines = [f"a{n}: &a{n} {item.format(', '.join(9 * [f'*a{n - 1}']))}\n" for n in range(1, depth)]
    return "a0: &a0 {x: 1, y: 2}\n" + "".join(lines) + SMALL


@pytest.mark.parametrize("item", ["{{<<: [{}]}}", "[{}]"], ids=["merged", "listed"])
@pytest.mark.parametrize("depth", [10, 200])
def test_aliases_that_stand_for_more_than_fits_are_refused(file: Path, item: str, depth: int) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{file}: holds more than 1,000,000 values, or itself")):
        load(file, _bomb(depth, item))


def test_a_few_aliases_are_fine(file: Path) -> None:
    text = (
        RING + "experiment: {model: {name: mlp}, data: {partition: {kind: counts, table: [&r [1, 2], *r, *r, *r]}}}\n"
    )
    text += "peers: {0: &slow {speed: 0.5}, 1: *slow, 2: {<<: *slow, batch: 3}}\n"
    run = load(file, text)
    assert run.experiment.data.partition.model_dump()["table"] == 4 * ((1, 2),)
    assert run.device(2).speed == run.device(1).speed == 0.5


def test_a_file_too_large_to_be_a_topology_is_refused_unread(file: Path) -> None:
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(MissingFileError, match=re.escape(f"cannot read {file}: larger than 4,194,304 bytes")):
        config.load(file)


@pytest.mark.parametrize("special", ["/dev/zero", "pipe", "."])
def test_a_counts_file_that_is_no_file_is_named(file: Path, special: str) -> None:
    os.mkfifo(file.parent / "pipe")
    with pytest.raises(MissingFileError, match=re.escape(f"cannot read {file.parent / special}")):
        load(file, with_keys(data=f"{{partition: {{kind: counts, file: {special}}}}}"))


@pytest.mark.parametrize(
    "text", ["password: hunter2\n", "root:$6$hunter2:19000:0:99999:7:::\n", "hunter2\n", "- hunter2"]
)
def test_what_a_file_holds_that_is_no_topology_is_not_told(file: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "graph: {kind: file, file: secret}\n",
        SMALL + "peers: {0: {profile: secret}}\n",
        with_keys(data="{partition: {kind: counts, file: secret}}"),
        with_keys(data="{partition: {kind: counts, table: [[1]], file: secret}}"),
    ],
    ids=["graph", "profile", "counts", "counts-twice"],
)
@pytest.mark.parametrize(
    "secret", ["root:$6$hunter2:19000:0:99999:7:::\n", "hunter2\n", "<hunter2/>\n", "<graphml><hunter2></graphml>\n"]
)
def test_what_a_file_holds_that_is_something_else_is_not_told(file: Path, text: str, secret: str) -> None:
    (file.parent / "secret").write_text(secret)
    with pytest.raises(DslthError) as caught:
        topology.build(load(file, text).graph, 1)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", ["2020-13-45", "0x_"])
def test_a_value_that_yaml_itself_cannot_convert_is_refused(file: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(str(file))):
        load(file, with_keys(seed=value))


PROPERTY = settings(max_examples=200, deadline=None, database=None)

WORDS = """
graph kind ring peers edges full experiment network host port addresses file counts table density speed seed model name
mlp algorithm lr <<: *a &a !!int !!binary !!timestamp !!set !!omap !!str ~ null yes .nan -.inf 1e999 0x_ 1:60 2001-01-32
? - -- --- ... | > % @ ` ' " { } [ ] , : # 0 1 3 -1 99999999999999999999 0.5 \\
"""
words = st.sampled_from(WORDS.split()) | st.sampled_from(
    ["\n", "\n  ", " ", ": ", "- ", "\t", "\0", "\ud800", "\u2028"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3) | st.dates(),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(0, 4), below, max_size=3)
    ),
    max_leaves=6,
)


def _is_a_run_or_an_error_of_ours(file: Path) -> None:
    said = ""
    try:
        run = config.load(file)
        topology.build(run.graph, run.experiment.seed)
        if run.network:
            run.network.address(0)
    except DslthError as error:
        said = str(error)
    if said:
        assert len(said.splitlines()) == 1
        return
    again = file.with_name("again.yaml")
    again.write_text(run.to_yaml(), encoding="utf-8")
    assert config.load(again) == run
    assert config.identity(run, "abc") == config.identity(config.load(again), "abc")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("yaml") / "any.yaml"


@PROPERTY
@given(st.lists(words, max_size=25).map("".join) | st.lists(words, max_size=25).map(" ".join))
def test_any_text_is_a_run_or_an_error_of_ours(scratch: Path, text: str) -> None:
    scratch.write_bytes(text.encode(errors="surrogatepass"))
    _is_a_run_or_an_error_of_ours(scratch)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of nested mappings and lists."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    return [(tree, key) for key in keys] + [place for key in keys for place in _places(tree[key])]


@PROPERTY
@given(st.data(), values)
def test_any_value_in_any_place_is_a_run_or_an_error_of_ours(scratch: Path, data: st.DataObject, value: Any) -> None:
    tree = yaml.safe_load(data.draw(st.sampled_from([EVERYTHING, SMALL])))
    container, key = data.draw(st.sampled_from(_places(tree)))
    container[key] = value
    scratch.write_text(yaml.safe_dump(tree), encoding="utf-8")
    _is_a_run_or_an_error_of_ours(scratch)


# --- presets and overrides ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", config.PRESETS)
def test_a_preset_sets_its_keys(file: Path, preset: str) -> None:
    experiment = load(file, with_keys(preset=preset)).experiment
    assert experiment.preset == preset
    for section in ("model", "algorithm"):
        found = getattr(experiment, section).model_dump(mode="json")
        assert config.PRESETS[preset][section].items() <= found.items()


def test_mce_pl_is_the_papers_protocol(file: Path) -> None:
    experiment = load(file, with_keys(preset="mce-pl")).experiment
    algorithm, model = experiment.algorithm, experiment.model
    assert (algorithm.lr, algorithm.fine_tune_lr, algorithm.weight_decay) == (10, 10, 5e-4)
    assert (algorithm.local_steps, algorithm.batch, algorithm.density) == (1, 128, ByKind(conv=0.3, linear=0.9))
    assert (algorithm.lasso, algorithm.min_filter_weights, algorithm.scores, algorithm.exchange) == (0, 0, "own", True)
    assert (model.init, model.norm, model.output_elu) == ("default", "local-response", True)


def test_the_default_preset_is_signed(file: Path) -> None:
    assert load(file, SMALL) == load(file, with_keys(preset="signed"))


def test_strong_is_signed_with_what_was_measured_to_help(file: Path) -> None:
    signed, strong = (load(file, with_keys(preset=preset)).experiment for preset in ("signed", "strong"))
    recipe = {"heavy_ball": 0.9, "relative": True, "schedule": "linear", "lr": 0.2, "fine_tune_lr": 0.0, "lift": 2.0}
    assert strong.algorithm == signed.algorithm.model_copy(update=recipe)
    assert strong.model == signed.model


def test_the_file_wins_over_the_preset_key_by_key(file: Path) -> None:
    plain = load(file, with_keys(preset="mce-pl")).experiment
    own = load(
        file, RING + "experiment: {preset: mce-pl, model: {name: cnn, norm: group}, algorithm: {lr: 2}}"
    ).experiment
    assert own.model == plain.model.model_copy(update={"name": "cnn", "norm": "group"})
    assert own.algorithm == plain.algorithm.model_copy(update={"lr": 2.0})


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        ("0.2", 0.2),
        ("[0.1, 0.2, 0.3]", (0.1, 0.2, 0.3)),
        ("{conv: 0.1, linear: 0.2}", ByKind(conv=0.1, linear=0.2)),
    ],
)
def test_a_density_replaces_the_presets_as_a_whole(file: Path, density: str, expected: object) -> None:
    run = load(file, with_keys(preset="mce-pl", algorithm=f"{{density: {density}}}"))
    assert run.experiment.algorithm.density == expected
    assert run.experiment.algorithm.lr == 10


def test_half_a_density_by_kind_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="density"):
        load(file, with_keys(algorithm="{density: {conv: 0.1}}"))


def test_overrides_win_over_the_file_and_the_file_over_the_preset(file: Path) -> None:
    text = with_keys(preset="mce-pl", seed="3", rounds="7", algorithm="{lr: 2, batch: 5}")
    overrides = {"experiment": {"seed": 4, "algorithm": {"lr": 3.0}}}
    experiment = load(file, text, overrides).experiment
    assert (experiment.seed, experiment.rounds) == (4, 7)
    algorithm = experiment.algorithm
    assert (algorithm.lr, algorithm.batch, algorithm.fine_tune_lr) == (3, 5, 10)
    assert overrides == {"experiment": {"seed": 4, "algorithm": {"lr": 3.0}}}


def test_an_overriding_preset_still_lies_below_the_file(file: Path) -> None:
    algorithm = load(file, with_keys(algorithm="{lr: 2}"), {"experiment": {"preset": "mce-pl"}}).experiment.algorithm
    assert (algorithm.lr, algorithm.fine_tune_lr, algorithm.weight_decay) == (2, 10, 5e-4)


def test_another_kind_replaces_and_the_same_kind_merges(file: Path) -> None:
    text = with_keys(data="{name: mnist, test_samples: 9, partition: {kind: dirichlet, alpha: 0.5, fraction: 0.25}}")

    def partition(value: dict[str, Any]) -> config.PartitionConfig:
        data = load(file, text, {"experiment": {"data": {"partition": value}}}).experiment.data
        assert (data.name, data.test_samples) == ("mnist", 9)
        return data.partition

    assert partition({"kind": "iid"}) == config.IidPartition(kind="iid", fraction=1)
    merged = config.DirichletPartition(kind="dirichlet", alpha=2, fraction=0.25)
    assert partition({"kind": "dirichlet", "alpha": 2}) == merged
    assert partition({"alpha": 2}) == merged
    star = {"graph": {"kind": "star", "peers": 9}}
    assert load(file, text, star).graph == config.Star(kind="star", peers=9)
    assert load(file, text, {"graph": {"peers": 9}}).graph == config.Ring(kind="ring", peers=9)
    with pytest.raises(ConfigError, match=r"graph\.rows: missing"):
        load(file, text, {"graph": {"kind": "torus"}})


@pytest.mark.parametrize("section", ["experiment: mlp", "experiment:", "experiment: {data: digits}"])
def test_an_override_does_not_hide_what_is_no_section(file: Path, section: str) -> None:
    overrides = {"experiment": {"rounds": 3, "data": {"folder": "/data"}}}
    with pytest.raises(ConfigError, match=r"experiment(\.data)?: input should be a valid dict"):
        load(file, RING + section, overrides)


def test_a_wrong_override_is_refused_like_the_file(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"experiment\.rounds: .*got 0"):
        load(file, SMALL, {"experiment": {"rounds": 0}})


# --- devices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED["peers"])
def test_every_shipped_profile_loads_by_name_and_by_file_name(file: Path, name: str) -> None:
    written = yaml.safe_load((config.shipped("peers") / name).read_text())
    for profile in (name, Path(name).stem):
        device = load(file, SMALL + f"peers: {{2: {{profile: {profile}}}}}\n").device(2)
        assert device.kind == Path(name).stem
        assert written.items() <= device.model_dump(mode="json").items()
        assert device.description


def test_a_profile_beside_the_topology_file_wins_over_a_shipped_one(file: Path) -> None:
    (file.parent / "phone.yaml").write_text("{batch: 3, speed: 0.25}")
    (file.parent / "mine").mkdir()
    (file.parent / "mine" / "watch.yaml").write_text("density: 0.125")
    run = load(file, SMALL + "peers: {0: {profile: phone.yaml}, 1: {profile: mine/watch.yaml}}\n")
    assert (run.device(0).batch, run.device(0).speed, run.device(0).density) == (3, 0.25, None)
    assert (run.device(1).density, run.device(1).kind) == (0.125, "watch")


def test_a_peers_own_keys_win_over_its_profiles(file: Path) -> None:
    (file.parent / "phone.yaml").write_text("{batch: 3, speed: 0.25, density: {conv: 0.1, linear: 0.2}}")
    run = load(file, SMALL + "peers: {0: {profile: phone.yaml, batch: 5, density: 0.5}, 3: {speed: 0.125}}\n")
    assert (run.device(0).batch, run.device(0).speed, run.device(0).density) == (5, 0.25, 0.5)
    assert run.device(3) == config.PeerConfig(speed=0.125)
    assert run.device(3).kind == "this machine"


def test_an_unknown_profile_is_named_with_the_shipped_ones(file: Path) -> None:
    with pytest.raises(MissingFileError, match="no device profile file 'toaster'") as caught:
        load(file, SMALL + "peers: {0: {profile: toaster}}\n")
    assert all(Path(name).stem in str(caught.value) for name in SHIPPED["peers"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sped: 1", "has none of the keys description, density, batch, threads, speed"),
        ("batch: 3\nsped: 1", "sped: unknown key"),
        ("speed: 0", "speed: .*got 0"),
        ("batch: 3\nprofile: phone", "profile: unknown key"),
        ("[1]", "expected keys and values at the top"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_profile_is_named_by_its_own_file(file: Path, text: str, says: str) -> None:
    profile = file.parent / "wrong.yaml"
    profile.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load(file, SMALL + "peers: {0: {profile: wrong.yaml}}\n")
    assert str(caught.value).startswith(str(profile))


@pytest.mark.parametrize("peer", [-1, 4, 100])
def test_a_peer_that_the_graph_does_not_have_is_named(file: Path, peer: int) -> None:
    run = load(file, SMALL + f"peers: {{0: {{batch: 3}}, {peer}: {{batch: 3}}}}\n")
    with pytest.raises(UnknownPeerError, match=f"there is no peer {peer}; this graph has peers 0 to 3"):
        run.check_peers(4)


def test_all_peers_of_the_graph_may_be_spoken_of(file: Path) -> None:
    run = load(file, SMALL + "peers: {0: {batch: 3}, 3: {batch: 3}}\n")
    run.check_peers(4)
    with pytest.raises(UnknownPeerError, match="there is no peer 3; this graph has peers 0 to 2"):
        run.check_peers(3)


# --- counts tables --------------------------------------------------------------------------------------------------


def test_a_counts_file_is_read_into_the_settings(file: Path) -> None:
    (file.parent / "tables").mkdir()
    (file.parent / "tables" / "counts.txt").write_text("1 2 3\n\n  40\t5 0 \n")
    run = load(file, with_keys(data="{partition: {kind: counts, file: tables/counts.txt, fraction: 0.5}}"))
    expected = config.CountsPartition(kind="counts", table=((1, 2, 3), (40, 5, 0)), fraction=0.5)
    assert run.experiment.data.partition == expected
    inline = load(file, with_keys(data="{partition: {kind: counts, table: [[1, 2, 3], [40, 5, 0]], fraction: 0.5}}"))
    assert inline == run


@pytest.mark.parametrize("partition", ["{kind: counts}", "{kind: counts, file: counts.txt, table: [[1]]}"])
def test_counts_need_either_a_file_or_a_table(file: Path, partition: str) -> None:
    (file.parent / "counts.txt").write_text("1\n")
    with pytest.raises(ConfigError, match="either 'file' or 'table'"):
        load(file, with_keys(data=f"{{partition: {partition}}}"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a counts table with no line of numbers"),
        ("\n \n", "a counts table with no line of numbers"),
        ("1 2\n3\n", ":2: rows must be equally long"),
        ("1 2\n\n3 -4\n", ":3: numbers must be from 0"),
        ("1 99999999999\n", ":1: numbers must be from 0"),
        ("-1\n", ":1: "),
        ("1 2\n3 x\n", ":2: a counts table holds whole numbers only"),
        ("1.5 2\n", ":1: a counts table holds whole numbers only"),
        ("1,2\n", ":1: a counts table holds whole numbers only"),
    ],
)
def test_a_wrong_counts_file_is_named_with_the_line(file: Path, text: str, says: str) -> None:
    path = file.parent / "counts.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        load(file, with_keys(data="{partition: {kind: counts, file: counts.txt}}"))
    assert str(caught.value).startswith(str(path))


def test_a_counts_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(MissingFileError, match=re.escape(str(file.parent / "counts.txt"))):
        load(file, with_keys(data="{partition: {kind: counts, file: counts.txt}}"))


# --- files that come with dslth -------------------------------------------------------------------------------------


def test_files_are_shipped() -> None:
    assert {"ring.yaml", "mesh10.yaml", "paper20.yaml"} <= set(SHIPPED["topologies"])
    assert len(SHIPPED["peers"]) >= 2


@pytest.mark.parametrize("name", SHIPPED["topologies"])
def test_every_shipped_topology_loads_and_builds(name: str) -> None:
    run = config.load(name)
    graph = topology.build(run.graph, run.experiment.seed)
    run.check_peers(graph.peers)
    addresses = {(run.network or NetworkConfig()).address(peer) for peer in range(graph.peers)}
    assert len(addresses) == graph.peers


# --- data folder ----------------------------------------------------------------------------------------------------


def test_data_folder_is_the_setting_then_the_variable_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.setenv("DSLTH_DATA_DIR", "/variable")
    assert config.data_folder(config.DataConfig(folder="/setting")) == Path("/setting")
    assert config.data_folder(config.DataConfig(folder="~/setting")) == tmp_path / "setting"
    assert config.data_folder(config.DataConfig()) == Path("/variable")
    monkeypatch.delenv("DSLTH_DATA_DIR")
    assert config.data_folder(config.DataConfig()) == Path("/cache/dslth")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert config.data_folder(config.DataConfig()) == tmp_path / ".cache" / "dslth"


@pytest.mark.parametrize("folder", [None, "~nobody-of-this-name/data"])
def test_a_home_that_is_not_known_is_named(folder: str | None) -> None:
    """Ask as a user that is in no user database, as in some containers."""
    program = f"from dslth import config; print(config.data_folder(config.DataConfig(folder={folder!r})))"
    known = {"HOME", "XDG_CACHE_HOME", "DSLTH_DATA_DIR", "USER", "LOGNAME"}
    env = {key: value for key, value in os.environ.items() if key not in known}
    as_stranger = ["unshare", "--user", "--map-user=54321"]
    try:
        subprocess.run([*as_stranger, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no user namespaces here")
    line = [*as_stranger, sys.executable, "-c", program]
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
    assert "ConfigError: data: ~" in done.stderr
    assert "in an unknown home folder; name a folder with --data-dir or DSLTH_DATA_DIR" in done.stderr
