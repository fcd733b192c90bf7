"""Engines that the tests start themselves, and end again where they did; one that cannot start is a failure."""

import json
import subprocess
import sys
import uuid

import pytest

from containers import BASE, IMAGE, ROOT, TOOLS, Project, composes, sh, start_engine
from dslth import config
from dslth.deploy.compose import compose as compose_file
from live import digests, printed


@pytest.fixture(scope="session")
def engine():
    """A Docker engine that answers."""
    started = start_engine()
    yield
    if started:
        sh(TOOLS / "docker-engine-up", "--stop")


@pytest.fixture(scope="session")
def image(engine):
    """The image of a peer, built from the checkout."""
    if sh("docker", "image", "inspect", BASE, check=False).returncode and (TOOLS / "base-image").exists():
        sh(TOOLS / "base-image")
    sh("docker", "build", "-t", IMAGE, "-f", "peers/Dockerfile", ".", cwd=ROOT, timeout=880)
    return IMAGE


@pytest.fixture(scope="session", params=["v1", "v2"])
def compose(request, engine):
    """Compose 1.29 and Compose 2, as far as they are here; one of them must be."""
    found = composes()
    assert found, "neither docker-compose nor docker compose is here"
    if request.param not in found:
        pytest.skip(f"Compose {request.param} is not on this machine")
    return found[request.param]


@pytest.fixture
def projects(engine, tmp_path, monkeypatch):
    """Make Compose projects of topology files; their containers and volumes go with the test."""
    made = []

    def make(file, peers, *, compose=None, change=lambda text: text, environment=None):
        monkeypatch.chdir(tmp_path)  # what is mounted is written relative to here
        tmp_path.chmod(0o755)  # and read by the containers' user
        path = tmp_path / "docker-compose.yml"
        path.write_text(change(compose_file(file, peers, config.load(file), image=IMAGE)))
        command = compose or next(iter(composes().values()))
        made.append(Project(command, f"dslth{uuid.uuid4().hex[:8]}", path, environment))
        return made[-1]

    yield make
    for project in made:
        project.down()


@pytest.fixture(scope="session")
def local_mesh(tmp_path_factory):
    """The masks of the shipped mesh of ten, learned by a local run: peer -> digest."""
    folder = tmp_path_factory.mktemp("local") / "run"
    code = "import sys; from dslth.__main__ import main; sys.argv[0] = 'dslth'; main()"
    line = [sys.executable, "-c", code, "run", "-t", "mesh10", "--json", "--out", str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    return digests(printed(done))


@pytest.fixture
def processes():
    """Start commands of any kind; those that are left are killed at the end."""
    started = []

    def start(*line, **options):
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(list(map(str, line)), start_new_session=True, **quiet | options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def mesh_file(tmp_path):
    """Write the shipped mesh of ten with addresses of its own; nothing else differs."""

    def write(network):
        path = tmp_path / "mesh.yaml"
        path.write_text((ROOT / "topologies" / "mesh10.yaml").read_text() + f"network: {json.dumps(network)}\n")
        return path

    return write
