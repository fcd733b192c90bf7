"""The shipped Compose file as a stack of a Swarm of one node."""

import os
from pathlib import Path

import pytest

from containers import ROOT, sh, wait_for
from live import digests, written

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


@pytest.fixture
def swarm(image):
    """A Swarm that is left again, unless this machine is in one already."""
    state = sh("docker", "info", "-f", "{{.Swarm.LocalNodeState}}").stdout.strip()
    if state == "inactive":
        sh("docker", "swarm", "init", "--advertise-addr", "127.0.0.1")
    yield
    if state == "inactive":
        sh("docker", "swarm", "leave", "--force")
        sh("docker", "network", "rm", "docker_gwbridge", check=False)


@pytest.fixture
def stack(swarm):
    name = f"dslthstack{os.getpid()}"
    yield name
    wait_for(lambda: sh("docker", "stack", "rm", name, check=False).returncode == 0)  # a task may still be on its way
    label = f"label=com.docker.stack.namespace={name}"

    def gone():
        return (
            not sh("docker", "ps", "-aq", "-f", label).stdout + sh("docker", "network", "ls", "-q", "-f", label).stdout
        )

    wait_for(gone)
    sh("docker", "volume", "rm", *sh("docker", "volume", "ls", "-q", "-f", label).stdout.split())


def test_the_shipped_file_as_a_stack_learns_the_masks_of_a_local_run(stack, local_mesh):
    sh("docker", "stack", "deploy", "--resolve-image", "never", "-c", ROOT / "docker-compose.yml", stack)

    def summary():
        place = sh("docker", "volume", "inspect", "-f", "{{.Mountpoint}}", f"{stack}_runs", check=False).stdout.strip()
        folder = Path(place or "/nowhere")
        return written(folder) if (folder / "summary.json").exists() else None

    found = wait_for(summary, 300)
    assert digests(found) == local_mesh
    assert not any(peer.missing for peer in found.peers)

    def collected():
        states = sh("docker", "service", "ps", "--format", "{{.CurrentState}}", f"{stack}_collector").stdout.split()
        return states and states[0] == "Complete"

    wait_for(collected)
