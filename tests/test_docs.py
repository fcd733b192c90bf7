"""Pages of the docs whose blocks are run."""

import sys

import pytest

from docs_blocks import blocks, follow

PAGES = (
    *("explanation/codec.md", "explanation/wire.md", "own.md", "python.md", "report.md"),
    *("sinks.md", "sweeps.md", "tickets.md", "tutorial.md"),
)
PROGRAMS = {"python": [sys.executable], "dslth": [sys.executable, "-m", "dslth"]}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_works_as_written(page, tmp_path):
    follow(page, tmp_path, PROGRAMS)


def test_ten_personal_models_are_plotted_by_a_script_of_thirty_lines():
    (script,) = [text for _, name, text in blocks("python.md") if name == "train.py"]
    assert sum(bool(line.strip()) for line in script.splitlines()) <= 30
