"""``dslth bench study``: a small study that is interrupted, goes on, and is shown from its cells alone."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from dslth.bench import tuning
from dslth.bench.cells import Cells
from dslth.bench.study import plan, show, work
from dslth.bench.theirs import Theirs
from dslth.errors import ConfigError
from dslth.stop import Stop

STUDY = """
parts:
  small:
    topology: {topology}
    settings: {{experiment: {{rounds: 2}}}}
    tuning_rounds: 1
    budgets: [100, 100_000, 10_000_000]
rows: {{mce-auto: [1], sgd-alone: [1, 2], dpsgd-fp16: [1]}}
"""
TUNED = {"mce-auto": 6, "sgd-alone": 4, "dpsgd-fp16": 4}


@pytest.fixture
def study(tmp_path, topology_file):
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(topology=topology_file()))
    return file


def made(file, folder, changes=None):
    return work.Study(plan.read(file), Cells(folder, "dslth bench study study"), changes or {})


def run(one, folder, only=(), **limits):
    lines = []
    left = one.run(only, folder / "run", work.Limits(Stop(), **limits), lines.append)
    return left, lines


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}


def test_a_study_goes_on_where_it_ended_and_is_shown_from_its_cells(study, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "FURTHER", ())  # the number of cells is known
    folder = tmp_path / "out"
    left, lines = run(made(study, folder), folder, ["sgd-alone"], cells=3)
    assert left == 3  # of four rates and two seeds
    assert lines[-1].startswith("small/sgd-alone/validation-lr=0.05-seed1: ")
    assert re.search(r"3 of 6 cells, \d+ min left$", lines[-1])
    assert not (folder / "run").exists()
    before = files(folder)
    again = made(study, folder)
    assert run(again, folder, ["sgd-alone"])[0] == 0
    assert before.items() <= files(folder).items()
    standings = {each.row: each for each in again.standings()}
    assert {name: each.effort for name, each in standings.items()} == TUNED
    done = standings["sgd-alone"]
    assert (done.tried, [result.cell.run.experiment.seed for result in done.results]) == (4, [1, 2])
    tuned = validation_cells(folder)
    best = max(cell["figures"]["accuracy_personal"] for cell in tuned)
    chosen = [cell["settings"]["values"] for cell in tuned if cell["figures"]["accuracy_personal"] == best]
    assert all(result.values in chosen for result in done.results)
    for cell in tuned:
        data = cell["settings"]["run"]["experiment"]["data"]
        assert data["validation"] == 0.1
        assert cell["settings"]["run"]["experiment"]["rounds"] == 1
    for result in done.results:
        assert "validation" not in result.record["settings"]["run"]["experiment"].get("data", {})
        assert len(result.figures["accuracies"]) == 3
        assert [point[0] for point in result.figures["curve"]] == [0, 1]
    assert standings["mce-auto"].done == 0
    assert show.write(again, again.standings(), folder)
    text = (folder / "small" / "tables.md").read_text()
    assert "Not finished: mce-auto (0 of 6 tuning runs, 0 of 1 seeds), dpsgd-fp16 (0 of 4" in " ".join(text.split())
    assert len(re.findall(r"^\| sgd-alone\*? \| \d+\.\d ± \d+\.\d % \|", text, re.M)) == 2
    assert (folder / "small" / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_a_rate_that_is_best_at_an_end_of_its_grid_is_tried_further(study, tmp_path):
    folder = tmp_path / "out"
    one = made(study, folder, {"experiment": {"algorithm": {"local_steps": 1}}})
    left, lines = run(one, folder, ["sgd-alone"], cells=4)  # the grid: one step is best at its highest rate
    assert left == 3
    assert re.search(r"4 of 7 cells", lines[-1])
    (standing,) = (each for each in one.standings() if each.row == "sgd-alone")
    assert (standing.tried, standing.effort) == (4, 5)
    assert run(one, folder, ["sgd-alone"])[0] == 0
    (standing,) = (each for each in one.standings() if each.row == "sgd-alone")
    tried = sorted(cell["settings"]["values"]["lr"] for cell in validation_cells(folder))
    assert standing.effort == standing.tried == len(tried) > 4
    assert tried[4:] == [0.3, 1, 3, 10, 30, 100, 300][: len(tried) - 4]
    best = standing.results[0].values["lr"]
    assert tried[0] < best < tried[-1]


def validation_cells(folder):
    return [json.loads(path.read_text()) for path in folder.glob("small/sgd-alone/validation-*.json")]


def test_a_cell_whose_settings_changed_is_done_again(study, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "FURTHER", ())
    folder = tmp_path / "out"
    run(made(study, folder), folder, ["sgd-alone"], cells=5)  # four rates, one seed
    elsewhere = made(study, folder, {"experiment": {"data": {"folder": "/elsewhere"}}})
    assert {each.row: each.done for each in elsewhere.standings()}["sgd-alone"] == 5
    other = made(study, folder, {"experiment": {"model": {"norm": "local-response"}}})
    assert {each.row: each.done for each in other.standings()}["sgd-alone"] == 0
    for cell in files(folder):
        cell.write_text(cell.read_text()[:-40])  # as after a crash, had it not been written whole
    assert {each.row: each.done for each in made(study, folder).standings()}["sgd-alone"] == 0


def test_bytes_are_counted_up_to_a_budget_and_one_seed_is_marked(study, tmp_path):
    whole = made(study, tmp_path)
    cell = work.Cell("small", whole.rows[0], {"lr": 1.0}, *whole.runs["small"], "after exchange")

    def result(curve):
        figures = {
            "accuracy_personal": curve[-1][2],
            "accuracy_worst": 0.5,
            "message_bytes": 20_000_000,
            "evaluated": "after exchange",
            "curve": curve,
        }
        record = {"figures": figures, "date": "2026-11-23T10:00:00", "machine": "m", "command": "c", "dslth": "0"}
        return work.Result(cell, record)

    curves = [[0, 90, 0.25], [1, 100_000, 0.5], [2, 10_000_001, 0.75]], [[0, 101, 0.35], [1, 90_000, 0.7], [2, 2e7, 1]]
    seeds = tuple(result(curve) for curve in curves)
    show.write(whole, [work.Standing("small", "mce-auto", 6, 6, (1, 2), seeds)], tmp_path)
    text = (tmp_path / "small" / "tables.md").read_text()
    assert "| mce-auto | – | 60.0 ± 14.1 % | 60.0 ± 14.1 % |" in text
    assert "| mce-auto | 87.5 ± 17.7 % | 50.0 % | 20.0 MB | 2 | lr=1 | 6 |" in text
    show.write(whole, [work.Standing("small", "mce-auto", 6, 6, (1, 2), seeds[:1])], tmp_path)
    text = (tmp_path / "small" / "tables.md").read_text()
    assert "| mce-auto | 25.0 % † | 50.0 % † | 50.0 % † |" in text
    assert "Not finished: mce-auto (1 of 2 seeds)." in text
    theirs = {"topology": "small", "accuracy": {1: 0.5, 2: 0.6}, "source": "elsewhere", "command": "run it"}
    others = [Theirs(method="FedAvg", **theirs), Theirs(method="Other", **theirs | {"topology": "large"})]
    standing = work.Standing("small", "mce-auto", 6, 6, (1, 2), seeds)
    show.write(whole, [standing], tmp_path, others)
    text = (tmp_path / "small" / "tables.md").read_text()
    assert "| FedAvg (theirs) | 55.0 ± 7.1 % | – | – | 2 | – | – |" in text
    assert "not measured by dslth" in " ".join(text.split())
    assert "Other" not in text


def test_an_interruption_keeps_what_is_finished(study, tmp_path, commands):
    begun = commands.start("dslth", "bench", "study", study, "--out", tmp_path / "out")
    assert "1 of 18 cells" in begun.stderr.readline()
    os.kill(begun.pid, signal.SIGINT)
    assert begun.wait(60) == 130
    kept = files(tmp_path / "out")
    assert kept
    assert not list((tmp_path / "out").glob("run*"))
    shown = commands.run("dslth", "bench", "study", study, "--out", tmp_path / "out", "--show")
    assert shown.returncode == 0, shown.stderr
    assert files(tmp_path / "out") == kept


def test_what_is_not_there_is_named(study):
    with pytest.raises(ConfigError, match="there is no 'dispfl'; there are small, mce-auto, sgd-alone, dpsgd-fp16"):
        plan.read(study).chosen(["dispfl"])
    study.write_text(study.read_text().replace("tuning_rounds: 1", "tuning_rounds: 0"))
    with pytest.raises(ConfigError, match=r"parts\.small\.tuning_rounds"):
        plan.read(study)


def test_the_study_that_comes_with_dslth_holds():
    whole = made("tables", Path("nowhere"))
    assert set(whole.runs) == {"digits", "fashion", "cifar10"}
    assert whole.runs["cifar10"][0].experiment.rounds == 60
    with_three = {name for name, seeds in whole.plan.rows.items() if len(seeds) == 3}
    assert with_three == {
        *("mce-auto", "mce-relative", "mce-strong", "mce-alone", "sgd-alone"),
        *("dpsgd", "dpsgd-tuned", "choco", "dispfl", "fedrep"),
    }
