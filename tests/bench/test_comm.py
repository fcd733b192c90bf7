"""``dslth bench comm``: a whole benchmark with real processes, and what is worked out from it."""

import csv
import hashlib
import json
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial

import pytest

from dslth import config, topology
from dslth.bench import comm, show, tuning
from dslth.bench.theirs import Theirs
from dslth.bench.tuning import effort, words
from dslth.config import TransportName
from dslth.engines.supervisor import run_local
from dslth.errors import ConfigError, DslthError
from dslth.masks import packed_size
from dslth.runs.folder import RunFolder


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Run all rows once: three peers, an mlp, digits, three rounds."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "small.yaml").write_text(
        "graph: {kind: ring, peers: 3}\nexperiment: {rounds: 3, seed: 7, model: {name: mlp}}\n"
    )
    line = "import sys; from dslth.__main__ import main; sys.argv[0] = 'dslth'; main()"
    arguments = ["bench", "comm", "-t", "small.yaml", "--target", "0.5", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", line, *arguments], cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", done


def test_the_benchmark_measures_every_row(benchmark):
    folder, done = benchmark
    result = json.loads((folder / "comm.json").read_text())
    rows = {row["row"]: row for row in result["rows"]}
    assert list(rows) == list(comm.ROWS)
    assert result["settings"]["experiment"]["seed"] == 7
    lossless = [name for name, row in comm.ROWS.items() if row.codec]
    assert {"mce-bitpack", "mce-range", "mce-delta", "mce-context", "mce-auto"} <= set(lossless)
    for name, row in rows.items():
        assert row["same_masks"] is (True if name in lossless else None), name
        assert row["missing"] == row["refused"] == 0, name
        assert 0 < row["accuracy_worst"] <= row["accuracy_personal"] <= 1
        assert len(row["curve"]) == len(row["bits_by_round"]) == 3
        if name.endswith("alone"):
            assert row["message_bytes"] == row["payload_bytes"] == 0
        else:
            assert row["payload_bytes"] < row["message_bytes"] < row["link_bytes"]
            assert row["curve"][-1][1] <= row["message_bytes"]
    weights = 64 * 256 + 256 * 128 + 128 * 10
    biases = 256 + 128 + 10
    assert rows["mce-bitpack"]["bits_per_weight"] == 1
    assert rows["dpsgd"]["payload_bytes"] == 4 * (weights + biases) * 6 * 3
    assert rows["dpsgd-fp16"]["payload_bytes"] == 2 * (weights + biases) * 6 * 3
    assert rows["dpsgd"]["to_dpsgd_ratio"] == 1
    assert rows["mce-bitpack"]["message_bytes_to_target"] in [sent for _, sent, _ in rows["mce-bitpack"]["curve"]]
    for name in lossless:
        assert rows[name]["curve"][-1][2] == rows["mce-bitpack"]["curve"][-1][2]
        assert rows[name]["entropy_given_last_1"] == rows["mce-bitpack"]["entropy_given_last_1"]
    # without a past it is the entropy of the density, which the range codec spends
    assert rows["mce-range"]["bits_by_round"][0] == pytest.approx(rows["mce-range"]["bounds_by_round"][0][0], rel=0.01)
    assert 0 < rows["mce-auto"]["entropy_given_last_2"] < rows["mce-auto"]["entropy_given_last_1"] < 0.6
    assert "mce-no-lift" in done.stdout
    assert len(done.stderr.strip().splitlines()) == len(rows)


def test_every_row_learns_the_same_over_memory(benchmark, tmp_path):
    folder, _ = benchmark
    sockets = {row["row"]: row for row in json.loads((folder / "comm.json").read_text())["rows"]}
    run = config.load(folder.parent / "small.yaml")
    graph = topology.build(run.graph, run.experiment.seed)
    rows = comm.chosen(None)
    for found in comm.run_rows(rows, run, graph, tmp_path, threading.Event(), transport=TransportName.MEMORY):
        over_sockets = sockets.pop(found.row)
        assert found.accuracy_personal == over_sockets["accuracy_personal"], found.row
        assert found.payload_bytes == over_sockets["payload_bytes"], found.row
        assert found.link_bytes is None
    assert not sockets


def test_the_benchmark_writes_tables_and_plots(benchmark):
    folder, _ = benchmark
    records = json.loads((folder / "comm.json").read_text())["rows"]
    with (folder / "comm.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["row"] for row in table] == list(comm.ROWS)
    assert set(table[0]) == {key for key, value in records[0].items() if not isinstance(value, list)}
    assert float(table[0]["accuracy_personal"]) == records[0]["accuracy_personal"]
    lines = (folder / "comm.md").read_text().splitlines()
    for name in comm.ROWS:
        assert sum(line.startswith((f"| {name} ", f"| {name}*")) for line in lines) == 2
    assert len({line.count("|") for line in lines if line.startswith("|")}) <= 2
    for name in ("accuracy.png", "bits.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob("rows/*/masks"))


def test_an_unknown_row_is_named(commands, topology_file):
    done = commands.run("dslth", "bench", "comm", "-t", topology_file(), "--rows", "mce-auto,fedavg")
    assert done.returncode == 3
    assert "fedavg" in done.stderr
    assert "choco" in done.stderr


@pytest.fixture
def within_grids(monkeypatch):
    monkeypatch.setattr(tuning, "FURTHER", ())  # runs as short as here are best at any rate


@pytest.fixture
def small(topology_file):
    run = config.load(topology_file(rounds=2))
    return run, topology.build(run.graph, run.experiment.seed)


def test_tuning_tries_learning_rates_first_and_then_other_values_with_the_best(small, tmp_path, within_grids):
    row = replace(comm.ROWS["ditto"], grid={"lr": (0.001, 0.1), "pull": (0.01, 0.1), "personal": (0.5, 0.75)})
    rows = comm.run_rows([row], *small, tmp_path / "rows", threading.Event(), transport=TransportName.MEMORY, tune=True)
    (found,) = rows
    folders = {folder.name: RunFolder(folder) for folder in (tmp_path / "tuning").iterdir()}
    tried = {name: comm.measure(comm.ROWS["ditto"], folder) for name, folder in folders.items()}
    assert len(tried) == 4  # two rates, one more pull, one more share
    assert {"ditto-lr=0.001,pull=0.1,personal=0.75", "ditto-lr=0.1,pull=0.1,personal=0.75"} <= set(tried)
    assert found.values["lr"] == 0.1
    chosen = f"ditto-{words(found.values)}"
    assert tried[chosen].accuracy_personal == max(figures.accuracy_personal for figures in tried.values())
    assert found.evaluated == tried[chosen].evaluated
    assert config.load(folders[chosen].path / "topology.yaml").experiment.data.validation == 0.1
    final = config.load(tmp_path / "rows" / "ditto" / "topology.yaml")
    assert final.experiment.data.validation == 0


def test_the_rates_of_masks_are_tuned_as_those_of_the_others(small, tmp_path, within_grids):
    rates = {"lr": (1.0, 1e-9), "fine_tune_lr": (1.0, 2.0)}
    row = replace(comm.ROWS["mce-auto"], grid=rates)
    (found,) = comm.run_rows(
        [row], *small, tmp_path / "rows", threading.Event(), transport=TransportName.MEMORY, tune=True
    )
    assert len(list((tmp_path / "tuning").iterdir())) == effort(row.values(small[0]), rates) == 3
    assert found.values["lr"] == 1
    final = config.load(tmp_path / "rows" / "mce-auto" / "topology.yaml").experiment.algorithm
    assert {name: getattr(final, name) for name in rates} == found.values


def fails_at_peer_1(job):
    if job.peer == 1:
        raise ConfigError("no such thing")
    return comm.Compared("dpsgd")(job)


def test_a_row_of_which_a_peer_fails_is_no_figure(small, tmp_path):
    row = replace(comm.ROWS["dpsgd"], method=fails_at_peer_1)
    with pytest.raises(DslthError, match="no such thing"):
        list(comm.run_rows([row], *small, tmp_path / "rows", threading.Event(), transport=TransportName.MEMORY))


def test_a_row_without_its_library_is_left_out_unless_it_is_asked_for(monkeypatch):
    assert [row.name for row in comm.chosen(None)] == list(comm.ROWS)
    monkeypatch.setattr(comm, "find_spec", lambda name: None)
    assert [row.name for row in comm.chosen(None)] == [name for name in comm.ROWS if name != "jwins"]
    with pytest.raises(ConfigError, match="pywt"):
        comm.chosen("dpsgd,jwins")


def test_figures_of_others_are_a_row_that_says_so(benchmark, tmp_path):
    folder, _ = benchmark
    figures = comm.measure(comm.ROWS["mce-bitpack"], RunFolder(folder / "rows" / "mce-bitpack"))
    theirs = Theirs(method="FedRep", topology="ring", accuracy={1: 0.5}, message_bytes=7, source="S", command="C")
    show.write([figures], {}, None, tmp_path, [theirs])
    lines = (tmp_path / "comm.md").read_text().splitlines()
    assert lines[3].startswith("| FedRep (theirs) | 50.0 % | – | – | 7 B | – |")
    assert any("FedRep (theirs): not measured by dslth" in line for line in lines)
    assert json.loads((tmp_path / "comm.json").read_text())["theirs"][0]["command"] == "C"
    assert "theirs" not in (tmp_path / "comm.csv").read_text()


def test_without_matplotlib_there_are_no_plots(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert show.plot([], tmp_path) is False
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lift", [True, False])
def test_what_is_recorded_is_what_was_sent(topology_file, tmp_path, lift):
    run = config.load(topology_file())
    folder = RunFolder(tmp_path / "run")
    graph = topology.build(run.graph, run.experiment.seed)
    run_local(run, graph, folder, transport="memory", method=partial(comm.Recorded, lift=lift))
    size = packed_size(folder.events()[0][0].sizes)
    for peer, (_, *rounds, _) in folder.events().items():
        packed = (folder.path / "masks" / f"peer-{peer}.bits").read_bytes()
        assert len(packed) == 3 * size
        for number, event in enumerate(rounds):
            assert hashlib.sha256(packed[number * size :][:size]).hexdigest() == event.mask_digest


def test_masks_that_differ_once_are_not_the_same(benchmark):
    folder, _ = benchmark
    rows = [comm.ROWS["mce-bitpack"], comm.ROWS["mce-delta"], comm.ROWS["mce-no-lift"], comm.ROWS["mce-range"]]
    measured = [comm.measure(row, RunFolder(folder / "rows" / row.name)) for row in rows]
    changed = measured[3].digests | {(2, 1): "0" * 64}
    compared = comm.compare([*measured[:3], replace(measured[3], digests=changed)], None)
    assert [figures.same_masks for figures in compared] == [True, True, None, False]
    assert measured[2].digests != measured[0].digests


def test_bytes_to_an_accuracy_are_those_of_the_first_round_that_has_it(benchmark):
    folder, _ = benchmark
    row = comm.ROWS["mce-bitpack"]
    figures = comm.measure(row, RunFolder(folder / "rows" / row.name))
    figures = replace(figures, curve=[(0, 10, 0.2), (1, 20, 0.6), (2, 30, 0.5), (3, 40, 0.7)])
    assert [figures.bytes_to(a) for a in (0.1, 0.2, 0.5, 0.65, 0.7, 0.8)] == [10, 10, 20, 40, 40, None]
