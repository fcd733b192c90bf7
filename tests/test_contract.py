"""The import contract of pyproject.toml can fail: each of its parts goes red for an import that it forbids."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = "imports point down only, and siblings stay apart"
TORCH = "what moves masks and says what happened works without torch"
CLOCKS = "what only computes has no sockets, no threads and no clock"


@pytest.fixture
def broken(tmp_path):
    """Copy the source, and return a function that plants a line in it and names the contracts that are broken then."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def check(module=None, line=""):
        if module:
            with (tmp_path / "src/dslth" / module).open("a") as file:
                file.write(f"\n{line}\n")
        lint = Path(sys.executable).with_name("lint-imports")
        done = subprocess.run(
            [lint, "--no-cache", "--no-logo"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path / "src"), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        kept, red = (re.findall(rf"^(.+) {state}\b", done.stdout, re.MULTILINE) for state in ("KEPT", "BROKEN"))
        assert {*kept, *red} == {LAYERS, TORCH, CLOCKS}, done.stdout + done.stderr
        assert (done.returncode == 0) == (not red)
        return set(red)

    return check


def test_the_source_keeps_to_it(broken):
    assert broken() == set()


@pytest.mark.parametrize(
    ("module", "line", "contracts"),
    [
        ("algorithm.py", "from dslth.coding import codecs", {LAYERS}),
        ("learning/data.py", "from dslth.runs import tickets", {LAYERS}),
        ("transport/base.py", "from dslth.learner import Learner", {LAYERS, TORCH}),
        ("bench/comm.py", "from dslth.deploy import compose", {LAYERS}),
        ("seeds.py", "import dslth.errors", {LAYERS}),
        ("stray.py", "", {LAYERS}),
        ("wire.py", "import torch", {TORCH}),
        ("wire.py", "from dslth.algorithm import combine", {TORCH}),
        ("coding/codecs.py", "from torch import Tensor", {TORCH}),
        ("runs/events.py", "import torch", {TORCH}),
        ("exchange/streams.py", "import dslth.learner", {LAYERS, TORCH}),
        ("algorithm.py", "from time import monotonic", {CLOCKS}),
        ("wire.py", "import zmq", {CLOCKS}),
        ("coding/codecs.py", "import threading", {CLOCKS}),
        ("exchange/streams.py", "import socket", {CLOCKS}),
        ("exchange/protocol.py", "import time", {CLOCKS}),
        ("exchange/modes.py", "import threading", {CLOCKS}),
        ("exchange/neighbour.py", "import zmq", {CLOCKS}),
        ("masks.py", "import asyncio", {CLOCKS}),
    ],
)
def test_an_import_that_it_forbids_breaks_it(broken, module, line, contracts):
    assert broken(module, line) == contracts
