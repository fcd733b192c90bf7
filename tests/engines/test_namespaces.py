"""Ten machines in small: network namespaces, each with an address of its own, joined by a bridge."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from containers import sh
from dslth.runs.folder import RunFolder
from dslth.runs.summary import PeerSummary
from live import rounds, rounds_done, wait_for, write_topology

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

PEERS = 10
PEER = Path(sys.executable).with_name("dslth-peer")


@pytest.fixture
def machines():
    """Ten namespaces, peer i at 10.77.0.(i + 1), and an eleventh that holds the bridge between them."""
    hub, *names = [f"dslth{os.getpid()}-{name}" for name in ("hub", *range(PEERS))]
    for name in (hub, *names):
        sh("ip", "netns", "add", name)
    try:
        sh("ip", "-n", hub, "link", "add", "bridge", "type", "bridge")
        sh("ip", "-n", hub, "link", "set", "bridge", "up")
        for i, name in enumerate(names):
            sh("ip", "-n", name, "link", "set", "lo", "up")
            sh("ip", "-n", hub, "link", "add", f"port{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            sh("ip", "-n", hub, "link", "set", f"port{i}", "master", "bridge", "up")
            sh("ip", "-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
            sh("ip", "-n", name, "link", "set", "eth0", "up")
        yield names
    finally:
        for name in (hub, *names):
            sh("ip", "netns", "delete", name)


def test_peers_on_ten_machines_learn_the_masks_of_a_local_run(machines, processes, mesh_file, local_mesh, tmp_path):
    file = mesh_file({"addresses": [f"10.77.0.{i + 1}:47100" for i in range(PEERS)]})
    (tmp_path / "keys" / "public").mkdir(parents=True)
    peers = []
    for i, machine in enumerate(machines):
        (tmp_path / f"keys-{i}").mkdir()
        (tmp_path / f"keys-{i}" / "public").symlink_to(tmp_path / "keys" / "public")  # private ones are not shared
        line = [PEER, "--id", i, "-t", file, "--out", tmp_path / f"run-{i}", "--keys", tmp_path / f"keys-{i}", "--json"]
        peers.append(processes("ip", "netns", "exec", machine, *line, "--join-timeout", 180))
    digests = {}
    for i, process in enumerate(peers):
        stdout, stderr = process.communicate(timeout=400)
        assert process.returncode == 0, stderr
        digests[i] = PeerSummary.model_validate_json(stdout).mask_digest
    assert digests == local_mesh


def test_without_keys_a_peer_does_not_talk_over_a_network(machines, processes, mesh_file, tmp_path):
    file = mesh_file({"addresses": [f"10.77.0.{i + 1}:47100" for i in range(PEERS)]})
    peer = processes("ip", "netns", "exec", machines[0], PEER, "--id", 0, "-t", file, "--out", tmp_path / "run")
    _, stderr = peer.communicate(timeout=60)
    assert peer.returncode not in (0, 1), stderr
    assert "--insecure" in stderr


@pytest.fixture
def names(machines, processes, tmp_path):
    """A name server that all machines ask; a name that is taken out of the folder is not answered for."""
    hub = machines[0].rpartition("-")[0] + "-hub"
    sh("ip", "-n", hub, "address", "add", "10.77.0.250/24", "dev", "bridge")
    folder = tmp_path / "names"
    folder.mkdir()
    for i, machine in enumerate(machines):
        (folder / f"peer-{i}.dslth.test").write_text(f"10.77.0.{i + 1}")
        settings = Path("/etc/netns", machine)  # where ip-netns looks for what a namespace has of its own under /etc
        settings.mkdir(parents=True)
        (settings / "resolv.conf").write_text("nameserver 10.77.0.250\n")
    line = [sys.executable, Path(__file__).with_name("names_server.py"), "10.77.0.250", folder]
    server = processes("ip", "netns", "exec", hub, *line)
    assert server.stdout.readline() == "up\n"
    yield folder
    server.kill()
    for machine in machines:
        shutil.rmtree(Path("/etc/netns", machine))


def test_a_dead_peer_and_a_silent_name_server_do_not_cut_living_neighbours_apart(machines, names, processes, tmp_path):
    network = {"host": "peer-{id}.dslth.test", "port": 47100}
    file = write_topology(tmp_path / "t.yaml", network=network, rounds=1500, deadline=2, evaluate_every=1500)
    out = tmp_path / "run"
    peers = []
    for i, machine in enumerate(machines[:3]):
        line = [PEER, "--id", i, "-t", file, "--out", out, "--insecure", "--quiet"]
        peers.append(processes("ip", "netns", "exec", machine, *line))
    wait_for(lambda: rounds_done(out, 3) >= 5)
    (names / "peer-1.dslth.test").unlink()
    peers[1].kill()
    peers[1].wait()
    for living in (peers[0], peers[2]):
        _, stderr = living.communicate(timeout=280)
        assert living.returncode == 0, stderr
    for peer, other in ((0, 2), (2, 0)):
        played = rounds(RunFolder(out).said_by(peer))
        assert len(played) == 1500
        assert sum(1 in report.missing for report in played) > 1000
        assert not any(other in report.missing for report in played)
