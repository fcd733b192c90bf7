"""``dslth experiment``: cells are done once, again when their settings change; tables and pictures come from them."""

import csv
import json

import pytest

from dslth import config
from dslth.bench.cells import Cells
from dslth.bench.experiments import plan, work
from dslth.errors import ConfigError, MissingFileError

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
