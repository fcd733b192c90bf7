"""The blocks of a page of the docs, followed as a reader would: in their order, and in one folder."""

import re
import subprocess
from pathlib import Path

from processes import ENV

ROOT = Path(__file__).parents[1]


def blocks(page):
    """The blocks of a page: kind, name of the file that it is (or nothing), text."""
    text = written(page)
    found = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(found) == text.count("\n```") / 2 >= 1
    return found


def written(page):
    """A page's text; README lies beside the docs."""
    return (ROOT / ("" if page == "README.md" else "docs") / page).read_text(encoding="utf-8")


def follow(page, folder, programs):
    """Write the files, run the Python and the commands; ``pip install`` is what the caller has done before.

    ``programs`` are the words that stand for python and dslth.
    """
    for number, (kind, name, block) in enumerate(blocks(page)):
        if name:
            (folder / name).write_text(block)
        elif kind == "text":  # what a command has printed
            continue
        elif kind == "python":
            (folder / f"block-{number}.py").write_text(block)
            _run([*programs["python"], f"block-{number}.py"], folder)
        else:
            assert kind == "console", f"a block of {kind} without a file's name"
            for command in block.splitlines():
                program, *rest = command.split()
                if program != "pip":
                    _run([*programs[program], *rest], folder)


def _run(line, folder):
    done = subprocess.run(line, cwd=folder, env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
