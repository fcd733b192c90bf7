"""What README tells the reader to type: its topology file as pasted, and make on a fresh machine."""

import os
import re
import subprocess
from pathlib import Path

from dslth import config
from live import printed

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def pasted(folder):
    """Write the block under the heading into a file of its own."""
    (block,) = re.findall(r"### Write a topology file\n+```yaml\n(.*?)```", README, re.DOTALL)
    file = folder / "pasted.yaml"
    file.write_text(block)
    return file


def test_the_topology_file_runs_as_pasted(commands, tmp_path):
    file = pasted(tmp_path)
    done = commands.run("dslth", "run", "-t", file, "--rounds", 2, "--json", timeout=280)
    summary = printed(done)
    assert summary.rounds == 2
    assert len(summary.peers) == 16
    assert {peer.missing for peer in summary.peers} == {0}


def test_what_the_file_offers_in_comments_is_taken(tmp_path):
    text = pasted(tmp_path).read_text()
    file = tmp_path / "networked.yaml"
    file.write_text(re.sub("^# network:", "network:", text, flags=re.MULTILINE))
    network = config.load(file).network
    assert network.address(3) == "tcp://peer-3:47100"
    (other,) = re.findall(r"Or (\{host: 10\.0\.0\.7.*?\})", text)
    file.write_text(text + f"network: {other}\n")
    assert config.load(file).network.address(3) == "tcp://10.0.0.7:47103"
    for name in ("mnist", "fashion-mnist", "cifar10"):
        assert config.load(file, {"experiment": {"data": {"name": name}}}).experiment.data.name == name


def would_do(target):
    """What make would do for a target on a fresh machine."""
    line = ["make", "--dry-run", "--no-print-directory", target, "VENV=absent"]
    alone = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # make runs the tests, too
    return subprocess.run(line, cwd=ROOT, env=alone, capture_output=True, text=True, check=True).stdout


def test_to_run_takes_no_developers_tools():
    run, test = would_do("run"), would_do("test")
    assert run.index('absent/bin/python -m pip install --quiet --editable ".[report]"') < run.index(
        "absent/bin/dslth run"
    )
    assert "[dev]" not in run
    assert test.index("[dev]") < test.index("pytest")
    assert would_do("venv") in test
