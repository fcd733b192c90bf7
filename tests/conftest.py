"""What several test files share: small runs, and peers as real processes."""

import signal

import pytest
from hypothesis import settings

from live import write_topology
from processes import Commands
from scene import Scene

settings.register_profile("dslth", deadline=None)  # how long an example takes is no test
settings.load_profile("dslth")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs deaf to it, and they theirs


@pytest.fixture
def topology_file(tmp_path):
    """Write a topology file of a small, quick run: three peers, an mlp, digits."""

    def write(name="small.yaml", **settings):
        return write_topology(tmp_path / name, **settings)

    return write


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
