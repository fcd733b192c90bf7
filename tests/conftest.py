"""What several test files share: small runs, and peers as real processes."""

import signal

import pytest
from hypothesis import settings

from dslth import config, topology
from dslth.engines.supervisor import run_local
from dslth.runs.folder import RunFolder
from live import write_topology
from processes import Commands
from scene import Scene

settings.register_profile("dslth", deadline=None)  # the time that an example takes is not tested
settings.load_profile("dslth")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs deaf to it, and they theirs


@pytest.fixture
def topology_file(tmp_path):
    """Write a topology file of a small, quick run: three peers, an mlp, digits."""

    def write(name="small.yaml", **settings):
        return write_topology(tmp_path / name, **settings)

    return write


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """Three peers, two rounds, in memory."""
    folder = tmp_path_factory.mktemp("recorded")
    file = folder / "small.yaml"
    file.write_text("graph: {kind: ring, peers: 3}\nexperiment: {rounds: 2, model: {name: mlp}}\n")
    run = config.load(file)
    run_local(run, topology.build(run.graph, 1), RunFolder(folder / "run"), transport="memory")
    return folder / "run"


@pytest.fixture
def commands(tmp_path):
    made = Commands(tmp_path)
    yield made
    made.end()


@pytest.fixture
def scene(topology_file):
    scenes = []

    def make(**experiment):
        scenes.append(Scene(topology_file(graph={"kind": "line", "peers": 2}, **experiment)))
        return scenes[-1]

    yield make
    for made in scenes:
        made.close()
