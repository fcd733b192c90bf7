"""Pages of the docs whose blocks are run, in their order and in one folder, as a reader would."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from processes import ENV

ROOT = Path(__file__).parents[1]
PAGES = ("own.md", "python.md", "report.md", "sweeps.md")
PROGRAMS = {
    "python": [sys.executable],
    "dslth": [sys.executable, "-m", "dslth"],
}


def run(line, folder):
    done = subprocess.run(line, cwd=folder, env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_a_page_works_as_written(page, tmp_path):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == text.count("\n```") / 2 >= 1
    for number, (kind, name, block) in enumerate(blocks):
        if name:
            (tmp_path / name).write_text(block)
        elif kind == "python":
            (tmp_path / f"block-{number}.py").write_text(block)
            run([sys.executable, f"block-{number}.py"], tmp_path)
        else:
            assert kind == "console", f"a block of {kind} without a file's name"
            for command in block.splitlines():
                if command.startswith("pip install"):  # what the developers' environment has
                    continue
                program, *rest = command.split()
                run([*PROGRAMS[program], *rest], tmp_path)


def test_ten_personal_models_are_plotted_by_a_script_of_thirty_lines():
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```python train.py\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert sum(bool(line.strip()) for line in script.splitlines()) <= 30
