"""Ten machines in small: network namespaces, each with an address of its own, joined by a bridge."""

import json
import os
import sys
from pathlib import Path

import pytest

from containers import sh

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
        digests[i] = json.loads(stdout)["mask_digest"]
    assert digests == local_mesh


def test_without_keys_a_peer_does_not_talk_over_a_network(machines, processes, mesh_file, tmp_path):
    file = mesh_file({"addresses": [f"10.77.0.{i + 1}:47100" for i in range(PEERS)]})
    peer = processes("ip", "netns", "exec", machines[0], PEER, "--id", 0, "-t", file, "--out", tmp_path / "run")
    _, stderr = peer.communicate(timeout=60)
    assert peer.returncode not in (0, 1), stderr
    assert "--insecure" in stderr
