"""Settings from the command line, one value or many, and runs compared."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dslth import config
from dslth.errors import ConfigError
from live import printed, written

# --- KEY=VALUE ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keys", "values"),
    [
        ("algorithm.lr=0.3", "experiment.algorithm.lr", [0.3]),
        ("experiment.algorithm.lr=0.1,1", "experiment.algorithm.lr", [0.1, 1]),
        ("graph.kind=ring", "graph.kind", ["ring"]),
        ("algorithm.density={conv: 0.5, linear: 0.9},0.5", "experiment.algorithm.density",
         [{"conv": 0.5, "linear": 0.9}, 0.5]),
        ("algorithm.density=[0.1, 0.2],[0.3]", "experiment.algorithm.density", [[0.1, 0.2], [0.3]]),
        ("data.path=a=b.csv", "experiment.data.path", ["a=b.csv"]),
        ("algorithm.exchange=false", "experiment.algorithm.exchange", [False]),
    ],
)  # fmt: skip
def test_a_setting_is_a_dotted_key_and_values_as_a_file_has_them(text, keys, values):
    assert config.assigned(text) == (tuple(keys.split(".")), values)


@pytest.mark.parametrize("text", ["", "lr", "=3", "algorithm.=3", ".lr=3", "lr=", "lr=]", "lr=[1", "lr={a: [}"])
def test_what_is_no_setting_is_refused(text):
    with pytest.raises(ConfigError, match="--set"):
        config.assigned(text)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_come_back(numbers):
    _, found = config.assigned("algorithm.lr=" + ",".join(format(number, ".17f") for number in numbers))
    assert found == pytest.approx(numbers)


def test_a_run_takes_any_setting_and_so_does_a_peer(commands, topology_file, tmp_path):
    options = ("--set", "rounds=2", "--set", "algorithm.density=0.3", "--set", "peers.1.batch=7")
    summary = printed(commands.run("dslth", "run", "-t", topology_file(), *options, "--json", "--out", "run"))
    assert summary.rounds == 2
    run = config.load(tmp_path / "run" / "topology.yaml")
    assert (run.experiment.algorithm.density, run.device(1).batch) == (0.3, 7)
    wrongs = {"algorithm.lrr=1": "algorithm.lrr: unknown key", "rounds=1,2": "to try several: dslth sweep"}
    for wrong, words in wrongs.items():
        done = commands.run("dslth-peer", "--id", 0, "-t", topology_file(), "--set", wrong)
        assert done.returncode == ConfigError.exit_code
        assert words in done.stderr


# --- sweeps ---------------------------------------------------------------------------------------------------------


def test_a_sweep_runs_each_combination_with_each_seed_and_goes_on(commands, topology_file, tmp_path):
    line = ("dslth", "sweep", topology_file(), "--set", "algorithm.lr=0.3,1,3", "--set", "rounds=2", "--out", "swept")
    first = commands.run(*line, "--seeds", "4..5", "--json")
    assert first.returncode == 0, first.stderr
    done = [(cell["variant"], cell["seed"]) for cell in json.loads(first.stdout)["cells"]]
    assert done == [(f"lr {lr}", seed) for seed in (4, 5) for lr in ("0.3", "1", "3")]
    alone = commands.run(
        "dslth", "run", "-t", topology_file(), "--set", "algorithm.lr=3", "--seed", 4, "--rounds", 2, "--out", "alone"
    )
    assert alone.returncode == 0
    assert len(list((tmp_path / "swept" / "cells").rglob("*.json"))) == 6
    (cell,) = [c for c in json.loads(first.stdout)["cells"] if (c["variant"], c["seed"]) == ("lr 3", 4)]
    assert written(tmp_path / "alone").accuracy_personal == pytest.approx(cell["accuracy_personal"], abs=1e-6)
    again = commands.run(*line, "--seeds", "4,5,6", "--json")
    assert "6 of 9 cells were finished before" in again.stderr
    assert len(json.loads(again.stdout)["cells"]) == 9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "algorithm.lr=-1,1"), "experiment.algorithm.lr"),
        (("--set", "algorithm.lr=1", "--seeds", "5..1"), "--seeds '5..1'"),
        (("--set", "algorithm.lr=1", "--seeds", "1..99999"), "--seeds"),
        (("--set", "seed=1..5"), "experiment.seed"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_runs(options, words, commands, topology_file, tmp_path):
    done = commands.run("dslth", "sweep", topology_file(), *options, "--out", "swept")
    assert done.returncode == ConfigError.exit_code
    assert words in done.stderr
    assert not (tmp_path / "swept").exists()


# --- compare --------------------------------------------------------------------------------------------------------


def test_runs_are_compared_by_settings_accuracy_and_masks(commands, topology_file, tmp_path):
    for name, options in (("one", ()), ("same", ()), ("other", ("--set", "algorithm.lr=3"))):
        commands.run("dslth", "run", "-t", topology_file(), "--transport", "memory", "--out", name, *options)
    compared = json.loads(commands.run("dslth", "compare", "one", "other", "--json").stdout)
    assert compared["settings"] == {"algorithm.lr": {"one": "1.0", "other": "3.0"}}
    assert set(compared["same_masks"].values()) == {False}
    assert [run["run_dir"] for run in compared["runs"]] == ["one", "other"]
    text = commands.run("dslth", "compare", "one", "same").stdout
    assert "settings that differ: none" in text
    assert text.count(" yes") == 3
    assert commands.run("dslth", "compare", "one").returncode == ConfigError.exit_code
