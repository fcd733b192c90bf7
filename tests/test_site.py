"""The documentation as a site: made without a warning, whole, and with nothing that comes from elsewhere."""

import re
import subprocess
import sys

import pytest

from docs_blocks import ROOT
from dslth import __all__ as exported
from dslth.config import json_schema
from processes import ENV


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    made = subprocess.run(
        line, cwd=ROOT, env=ENV | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=120
    )
    assert (made.returncode, made.stdout) == (0, ""), made.stderr
    return folder


def test_every_key_of_a_topology_file_has_its_place(site):
    page = (site / "reference" / "keys.html").read_text()
    schema = json_schema()
    keys = {key for part in (schema, *schema["$defs"].values()) for key in part.get("properties", {})}
    assert len(keys) > 60
    assert {key for key in keys if f"<code>{key}</code>" not in page} == set()


def test_every_name_of_the_api_and_every_command_has_its_place(site):
    page = (site / "reference" / "api.html").read_text()
    assert all(f"{name}</h" in page or f".{name}" in page for name in exported if name != "__version__")
    commands = (site / "reference" / "commands.html").read_text()
    assert all(f"dslth {command}" in commands for command in ("run", "bench fuzz", "ticket apply", "sink"))
    assert "dslth-peer" in commands


def test_formulas_need_no_script_and_pages_nothing_from_elsewhere(site):
    algorithm = (site / "explanation" / "algorithm.html").read_text()
    assert algorithm.count("<math") > 20
    assert "arithmatex" not in algorithm
    for page in site.rglob("*.html"):
        asked = r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]*)"'
        assert re.findall(asked, page.read_text()) == [], page
