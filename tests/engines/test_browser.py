"""The page of a run in a real browser."""

import re
import subprocess

import pytest

from dslth import topology
from dslth.engines.supervisor import run_local
from dslth.report import page
from dslth.runs.folder import RunFolder
from topology_files import load

pytestmark = pytest.mark.engine

LOOK = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--enable-logging=stderr")


@pytest.mark.parametrize(("peers", "dark"), [(10, False), (10, True), (100, False)])
def test_all_pictures_are_drawn_and_the_console_stays_empty(peers, dark, tmp_path):
    keys = (
        f"graph: {{kind: small-world, peers: {peers}, neighbours: 4, p: 0.2}}\n"
        "experiment: {rounds: 3, model: {name: mlp},"
        " data: {partition: {kind: drawn, classes_per_peer: 4, samples: 60}}}\n"
    )
    run = load(tmp_path / "t.yaml", keys)
    run_local(run, topology.build(run.graph, 1), RunFolder(tmp_path / "run"), transport="memory")
    page.write(tmp_path / "page.html", [tmp_path / "run", tmp_path / "run"])
    mode = ["--blink-settings=preferredColorScheme=0"] if dark else []
    home = f"--user-data-dir={tmp_path / 'browser'}"
    line = ["chromium", *LOOK, *mode, home, "--dump-dom", f"file://{tmp_path / 'page.html'}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    pictures = sum(len(section["pictures"]) for section in page.content([tmp_path / "run"] * 2)["sections"])
    assert re.search(r'data-drawn="(\d+)"', done.stdout)[1] == str(pictures)
    assert ('<html lang="en" class="dark">' in done.stdout) == dark
