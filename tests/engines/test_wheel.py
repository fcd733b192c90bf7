"""The tutorial, in an environment that has the built wheel and nothing else of ours."""

import subprocess
import sys

import pytest

from docs_blocks import ROOT, follow

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def test_the_tutorial_works_with_the_wheel_alone(tmp_path):
    def do(*line):
        done = subprocess.run(list(map(str, line)), cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    do(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    do(sys.executable, "-m", "venv", tmp_path / "fresh")
    programs = tmp_path / "fresh" / "bin"
    do(programs / "python", "-m", "pip", "install", "--quiet", "torch==2.13.0")  # as the Makefile does, before the rest
    do(programs / "python", "-m", "pip", "install", "--quiet", wheel)
    installed = do(programs / "python", "-m", "pip", "list").lower()
    assert "pandas" not in installed
    assert "vl-convert" not in installed
    follow("tutorial.md", tmp_path, {"python": [programs / "python"], "dslth": [programs / "dslth"]})
