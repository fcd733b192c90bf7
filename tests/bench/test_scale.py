"""``dslth bench scale``: what it measures agrees with the run, and what was measured before an interruption is kept."""

import csv
import json
import os
import signal

import pytest

from dslth.runs.folder import RunFolder
from dslth.runs.summary import summarise


def test_each_row_agrees_with_its_run(commands, tmp_path):
    done = commands.run("dslth", "bench", "scale", "--peers", "5", "--rounds", "3", "--out", "out", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "out/scale.json").read_text())
    assert [(row["engine"], row["peers"], row["rounds"]) for row in result["rows"]] == [
        ("local", 5, 3),
        ("batched", 5, 3),
    ]
    for row in result["rows"]:
        run = summarise(RunFolder(tmp_path / f"out/runs/{row['engine']}-5"))
        assert row["message_bytes"] == run.message_bytes_sent / (4 * 5 * 3)
        assert row["wall_ms"] * 5 == pytest.approx(1000 * row["round_seconds"])
        assert 0 < row["round_seconds"] < row["first_round_seconds"]
        assert 0 < row["main_ms"] < row["processor_ms"]
        assert 20 < row["memory_mb"] < 1_000
    with (tmp_path / "out/scale.csv").open(newline="") as file:
        assert [row["engine"] for row in csv.DictReader(file)] == ["local", "batched"]
    assert (tmp_path / "out/scale.png").read_bytes().startswith(b"\x89PNG")


def test_an_interruption_keeps_the_rows_before(commands, tmp_path):
    line = ("bench", "scale", "--engine", "batched", "--peers", "5", "--peers", "7", "--rounds", "3", "--out", "out")
    process = commands.start("dslth", *line)
    assert process.stderr.readline().startswith("batched, 5 peers: ")
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in stderr
    assert [row["peers"] for row in json.loads((tmp_path / "out/scale.json").read_text())["rows"]] == [5]
    assert "four neighbours" in stdout
