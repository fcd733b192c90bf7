"""Ten containers of a mesh, by Compose, with the file that is shipped."""

import json
import os
import re
import subprocess

import numpy as np
import pytest
from sklearn.datasets import load_digits

from containers import IMAGE, ROOT, Project, sh, wait_for
from dslth.runs.summary import PeerSummary
from live import digests, printed

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

HELD = "cat /sys/fs/cgroup/memory/memory.stat /sys/fs/cgroup/memory.stat 2>/dev/null | grep -E '^(total_rss|anon) '"
"""Anonymous memory of a container, in cgroups of version 1 or 2."""


@pytest.fixture
def shipped(compose, image):
    project = Project(compose, f"dslthmesh{os.getpid()}", ROOT / "docker-compose.yml")
    yield project
    project.down()


def test_the_shipped_mesh_builds_ends_by_itself_and_learns_the_masks_of_a_local_run(shipped, local_mesh):
    shipped("build", timeout=880)
    done = shipped("up", timeout=400)
    assert re.search(r"personal accuracy, mean +9\d\.\d %", done.stdout)
    summary = shipped.summary()
    assert digests(summary) == local_mesh
    assert summary.accuracy_personal >= 0.95
    assert not any(peer.missing or peer.refused for peer in summary.peers)
    assert set(shipped.end().values()) == {0}
    assert set(shipped.read_names("tickets")) == {f"peer-{i}.safetensors" for i in range(10)}
    # again, with all that was left lying: a new run with the same masks
    shipped("up", timeout=400)
    assert digests(shipped.summary()) == local_mesh


def test_ten_peers_with_a_folder_each_learn_what_a_local_run_does(image, projects, commands, tmp_path):
    digits = load_digits()
    for peer in range(10):
        (tmp_path / f"peer-{peer}").mkdir()
        for part, rows in (("train", np.arange(1500)), ("test", np.arange(1500, 1797))):
            mine = rows[rows % 10 == peer]
            np.savez(tmp_path / f"peer-{peer}" / f"{part}.npz", x=digits.data[mine], y=digits.target[mine])
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def net(shape, classes): return nn.Sequential(nn.Linear(shape[0], 64), nn.ReLU(), nn.Linear(64, classes))\n"
    )
    (tmp_path / "each.yaml").write_text(
        "graph: {kind: ring, peers: 10}\n"
        "experiment:\n"
        "  rounds: 10\n"
        "  data: {path: 'peer-{id}', classes: 10}\n"
        "  model: {name: './net.py:net'}\n"
        "  algorithm: {density: 0.5}\n"
    )
    local = printed(commands.run("dslth", "run", "-t", "each.yaml", "--json", "--out", "local"))
    project = projects(tmp_path / "each.yaml", 10)
    project("up", timeout=400)
    assert set(project.end().values()) == {0}
    summary = project.summary()
    assert digests(summary) == digests(local)
    assert summary.accuracy_personal > 0.5
    assert not any(peer.missing or peer.refused for peer in summary.peers)
    mounts = {mount["Destination"] for mount in project.inspect("peer-3")["Mounts"]}
    assert {path for path in mounts if path.startswith("/topologies")} == {
        "/topologies/each.yaml",
        "/topologies/net.py",
        "/topologies/peer-3",
    }


def test_keys_are_made_inside_and_private_ones_stay_there(shipped):
    shipped("up", "-d")
    wait_for(lambda: shipped.round(0) >= 1)
    assert sorted(shipped.read_names("keys")) == sorted(f"peer-{i}.key" for i in range(11))
    assert all("secret" not in shipped.read(f"peer-{i}.key", "keys") for i in range(11))
    for i in range(2):
        listing = sh("docker", "exec", shipped.container(f"peer-{i}"), "ls", "-l", "/state/keys/private").stdout.split(
            "\n"
        )
        assert [line for line in listing if line.endswith(".key")] == [listing[1]]
        assert listing[1].startswith("-rw-------")
        assert listing[1].endswith(f"peer-{i}.key")


def test_containers_are_small_unprivileged_and_asked_how_they_are(shipped):
    shipped("up", "-d")
    peers = [f"peer-{i}" for i in range(10)]
    wait_for(lambda: all(shipped.round(i) >= 1 for i in range(10)))
    for peer in peers:
        # what its processes hold: docker stats adds the kernel's own and the file cache, which is shared and given back
        held = sh("docker", "exec", shipped.container(peer), "sh", "-c", HELD).stdout.split()
        assert int(held[-1]) < 200e6, held
    user = sh("docker", "exec", shipped.container("peer-3"), "id", "-u").stdout.strip()
    assert user == "10001"
    size = json.loads(sh("docker", "image", "inspect", IMAGE).stdout)[0]["Size"]
    assert size < 1.2e9
    for tool in ("gcc", "cc", "make", "hatchling"):
        found = sh("docker", "run", "--rm", "--network", "none", IMAGE, "sh", "-c", f"command -v {tool}", check=False)
        assert found.returncode != 0
    check = ["docker", "exec", shipped.container("peer-3"), "python", "-m", "dslth.deploy.alive"]
    assert sh(*check, 47100).returncode == 0
    assert sh(*check, 47101, check=False).returncode == 1


def test_sigterm_ends_a_peer_with_its_checkpoint_written(shipped):
    shipped("up", "-d")
    wait_for(lambda: shipped.round(4) >= 1)
    sh("docker", "stop", "-t", 5, shipped.container("peer-4"))
    assert shipped.inspect("peer-4")["State"]["ExitCode"] == 130  # 137: killed when its time was up
    copied = subprocess.run(
        ["docker", "cp", f"{shipped.container('peer-4')}:/state/checkpoints/peer-4", "-"],
        capture_output=True,
        check=True,
    )
    assert b"round-" in copied.stdout


def test_link_bytes_agree_with_the_containers_own_interfaces(image, projects, tmp_path):
    (tmp_path / "mesh.yaml").write_text(
        "graph: {kind: full, peers: 4}\n"
        "experiment: {rounds: 60, evaluate_every: 60, codec: bitpack, model: {name: mlp}}\n"
    )

    def alone(text):
        """No collector: nothing but the peers' own talk is on the wire; the counters come last."""
        text = re.sub(r"  collector:.*?\n\n", "", text, flags=re.DOTALL)
        words = re.search(r"  command: (\[.*\])", text)
        command = json.loads(words[1])
        at = command.index("--reports")
        del command[at : at + 2]
        told = " ".join(f"'{word}'" for word in [*command, "--json"])
        script = f"{told} && tr '\\n' ';' </proc/net/dev"
        return text.replace(words[1], json.dumps(["sh", "-c", script])).replace("$", "$$").replace("$${", "${")

    project = projects(tmp_path / "mesh.yaml", 4, change=alone)
    project("up", timeout=100)
    for i in range(4):
        log = sh("docker", "logs", project.container(f"peer-{i}")).stdout
        line = next(line for line in log.splitlines() if line.startswith("{"))
        summary = PeerSummary.model_validate_json(line)
        counters = re.search(r"eth0: *([\d ]+)", log)[1].split()
        for link, at in ((summary.link_bytes_received, 0), (summary.link_bytes_sent, 8)):
            octets, packets = int(counters[at]), int(counters[at + 1])
            headers = packets * (14 + 20 + 32)  # Ethernet, IP, TCP with time stamps
            assert octets - headers == pytest.approx(link, rel=0.02), f"{octets} of which headers {headers}"
