"""``dslth experiment``: cells are done once, again when their settings change; tables and pictures come from them."""

import csv
import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from dslth import config
from dslth.bench.cells import Cells
from dslth.bench.experiments import parallel, plan, work
from dslth.engines.base import end_on_signals
from dslth.errors import ConfigError, DataError, MissingFileError, PeerFailedError
from dslth.stop import Stop
from live import wait_for

SHIPPED = sorted(file.stem for file in config.shipped("experiments").glob("*.yaml"))
SMALL = """
title: Small
question: does a smaller ring learn?
seeds: [1]
runs:
  topology: ring
  settings: {graph: {kind: ring, peers: 3}, experiment: {rounds: 2, model: {name: mlp}}}
  against: alone
  at: [1, 2]
  published: {theirs: {2: 0.5}}
  variants:
    alone: {settings: {experiment: {algorithm: {exchange: false}}}}
    masks: {}
"""


def test_a_cell_is_finished_while_its_settings_are_the_same(tmp_path):
    cells = Cells(tmp_path / "cells", "dslth experiment x")
    assert cells.finished("a", {"n": (1, 2)}) is None
    kept = cells.finish("a", {"n": (1, 2)}, {"error": 0.1, "by": {3: 4}}, "here")
    assert kept["figures"] == {"error": 0.1, "by": {"3": 4}}
    assert (kept["command"], kept["machine"]) == ("dslth experiment x", "here")
    assert cells.finished("a", {"n": (1, 2)}) == cells.finished("a", {"n": [1, 2]}) == kept
    assert cells.finished("a", {"n": (1, 3)}) is None
    file = tmp_path / "cells/a.json"
    file.write_bytes(file.read_bytes()[:-9])
    assert cells.finished("a", {"n": (1, 2)}) is None


def test_what_is_finished_is_not_done_again_and_what_changed_is(commands, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    line = ("dslth", "experiment", "small.yaml", "--out", "out")
    done = commands.run(*line, "--json")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 cells" in done.stderr
    result = json.loads(done.stdout)
    assert [(cell["variant"], cell["seed"]) for cell in result["cells"]] == [("alone", 1), ("masks", 1)]
    assert [cell["message_bytes"] > 0 for cell in result["cells"]] == [False, True]
    with (tmp_path / "out/runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy_personal"]) for row in rows] == [cell["accuracy_personal"] for cell in result["cells"]]
    assert (tmp_path / "out/figure.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "out/tables.md").read_text()
    assert "`dslth experiment small`" in text
    assert "seeds 1, 2 cells" in text
    assert "| theirs | " in text
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == [
        *("cells", "figure.png", "runs.csv", "runs.json", "tables.md")
    ]

    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out/cells").iterdir()}
    (tmp_path / "small.yaml").write_text(SMALL.replace("exchange: false", "exchange: false, lr: 0.5"))
    again = commands.run(*line)
    assert again.returncode == 0, again.stderr
    assert "1 of 2 cells were finished before" in again.stderr
    assert {file.stem for file, when in before.items() if file.stat().st_mtime_ns == when} == {"masks-seed1"}
    cells = json.loads((tmp_path / "out/runs.json").read_text())["cells"]
    assert [cell == was for cell, was in zip(cells, result["cells"], strict=True)] == [False, True]


def test_the_strong_lottery_ticket_hypothesis_is_drawn_quickly(commands, tmp_path):
    done = commands.run("dslth", "experiment", "dslth", "--quick", "--out", "out", "--json")
    assert done.returncode == 0, done.stderr
    sums = [cell for cell in json.loads(done.stdout)["cells"] if "drawn" in cell]
    assert len(sums) == 6
    for cell in sums:
        medians = [deciles[4] for deciles in cell["log10_error_deciles"]]
        if cell["drawn"] != "constant":
            assert medians == sorted(medians, reverse=True)
            assert cell["bits_per_candidate"] > (0.8 if cell["mask"] == "{0,1}" else 1.3)
    assert (tmp_path / "out/figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "fidelity"])
def test_every_shipped_experiment_is_one_that_can_be_done(name):
    whole = plan.read(name)
    for planned in (whole, whole.quickly()):
        cells = work.cells_of(planned, {})
        assert len({cell.name for cell in cells}) == len(cells) >= len(planned.seeds)
        json.dumps([cell.settings for cell in cells])


def test_a_variant_that_is_not_there_or_a_row_is_named(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text(SMALL.replace("against: alone", "against: other"))
    with pytest.raises(ConfigError, match="there is no variant 'other'"):
        plan.read(file)
    file.write_text(SMALL.replace("masks: {}", "masks: {row: none}"))
    with pytest.raises(ConfigError, match="there is no row 'none'"):
        work.cells_of(plan.read(file), {})
    with pytest.raises(MissingFileError, match=", ".join(SHIPPED)):
        plan.read("absent")


# --- side by side ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "cores", "memory", "available", "width"),
    [(9, 4, 1, 100, 4), (3, 4, 1, 100, 3), (9, 4, 30, 100, 3), (9, 4, 200, 100, 1), (9, 4, 0, 100, 4), (0, 4, 1, 9, 1)],
)
def test_as_many_go_side_by_side_as_cores_and_memory_allow(pieces, cores, memory, available, width):
    assert parallel.at_once(pieces, cores, memory, available) == width


def squared(number, folder):
    (folder / "mine").write_text("")
    return number**2, sorted(os.sched_getaffinity(0)), str(folder)


def failing(folder):
    raise DataError("no such data")


def dying(folder):
    os.kill(os.getpid(), signal.SIGKILL)


def endless(file, folder):
    file.write_text(str(os.getpid()))
    stop = Stop()
    with end_on_signals(stop):
        while not stop.is_set():
            time.sleep(0.01)


def test_each_piece_has_its_share_of_the_cores_and_a_folder_that_goes():
    cores = sorted(os.sched_getaffinity(0))
    found = dict(parallel.results([partial(squared, number) for number in range(5)], 2, Stop()))
    assert {number: result for number, (result, _, _) in found.items()} == {n: n * n for n in range(5)}
    assert {tuple(share) for _, share, _ in found.values()} <= {tuple(cores[0::2]), tuple(cores[1::2])}
    assert not any(Path(folder).exists() for _, _, folder in found.values())


@pytest.mark.parametrize(
    ("work", "error", "words"), [(failing, DataError, "no such data"), (dying, PeerFailedError, "died")]
)
def test_a_piece_that_fails_ends_the_others(work, error, words, tmp_path):
    file = tmp_path / "pid"
    with pytest.raises(error, match=words):
        list(parallel.results([partial(endless, file), work], 2, Stop()))
    assert not file.exists() or not psutil.pid_exists(int(file.read_text()))


def test_an_interrupted_piece_ends_properly(tmp_path):
    file, stop = tmp_path / "pid", Stop()
    results = parallel.results([partial(endless, file), partial(endless, tmp_path / "second")], 1, stop)
    threading.Thread(target=lambda: (wait_for(file.exists), stop.set())).start()
    assert list(results) == [(0, None)]
    assert not (tmp_path / "second").exists()


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(commands, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL.replace("seeds: [1]", "seeds: [1, 2, 3, 4, 5, 6]"))
    line = ("dslth", "experiment", "small.yaml", "--out", "out", "--json")
    going = commands.start(*line)
    wait_for(lambda: list((tmp_path / "out/cells").glob("*.json")))
    os.killpg(going.pid, signal.SIGINT)
    stdout, stderr = going.communicate(timeout=60)
    assert going.returncode == 130, stderr
    kept = len(json.loads(stdout)["cells"])
    assert 1 <= kept < 12
    again = commands.run(*line)
    assert f"{kept} of 12 cells were finished before" in again.stderr
    assert len(json.loads(again.stdout)["cells"]) == 12
