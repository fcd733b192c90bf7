"""What happens to containers: killed, paused, cut off, on a bad link. The run ends, and the report shows it."""

import os
import signal

import pytest

from containers import sh, wait_for
from dslth.runs.events import RoundReport, parse
from live import digests, printed

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

PEERS = 4
ROUNDS = 400
"""Enough for a neighbour to be lost and back before the last."""


@pytest.fixture
def topology(tmp_path):
    """Write a topology of four peers, each linked to every other."""

    def write(**experiment):
        settings = {"model": "{name: mlp}", "evaluate_every": 20} | experiment
        text = ", ".join(f"{key}: {value}" for key, value in settings.items())
        path = tmp_path / "faults.yaml"
        path.write_text(f"graph: {{kind: full, peers: {PEERS}}}\nexperiment: {{{text}}}\n")
        return path

    return write


@pytest.fixture
def start(image, projects, topology):
    """Start a run in containers, and wait until all peers have checkpoints."""

    def run(**experiment):
        file = topology(**experiment)
        project = projects(file, PEERS)
        project("up", "-d")
        wait_for(lambda: all(project.round(i) >= 12 for i in range(PEERS)))
        return project, file

    return run


def local(commands, file):
    done = commands.run("dslth", "run", "-t", file, "--transport", "memory", "--out", "local", "--json")
    return digests(printed(done))


def test_a_peer_killed_by_9_comes_back_by_itself_and_no_mask_differs(start, commands):
    project, file = start(rounds=200, deadline="none")
    os.kill(project.pid("peer-1"), signal.SIGKILL)
    assert set(project.end().values()) == {0}
    assert project.inspect("peer-1")["RestartCount"] == 1
    summary = project.summary()
    assert [peer.rounds_completed for peer in summary.peers] == [200] * PEERS
    assert [event.peer for event in summary.happenings if event.what == "resumed"] == [1]
    assert digests(summary) == local(commands, file)


def happened(project, what, neighbour=1):
    """Which peers noticed something about a neighbour."""
    happenings = project.summary().happenings
    return {event.peer for event in happenings if event.what == what and event.neighbour == neighbour}


def lost(project):
    return all(any(event.neighbour == 1 for event in project.noticed(i, "lost")) for i in (0, 2, 3))


def ended_with_peer_1_lost_and_back(project):
    codes = project.end()
    assert set(codes.values()) == {0}, codes
    assert happened(project, "lost") == happened(project, "back") == {0, 2, 3}
    summary = project.summary()
    assert all(summary.peers[i].missing for i in (0, 2, 3))  # peer 1 may have skipped what it missed
    assert [peer.rounds_completed for peer in summary.peers] == [summary.rounds] * PEERS


def test_a_paused_peer_costs_its_contribution_and_comes_back(start):
    project, _ = start(rounds=ROUNDS, deadline=2)
    sh("docker", "pause", project.container("peer-1"))
    wait_for(lambda: lost(project))
    sh("docker", "unpause", project.container("peer-1"))
    ended_with_peer_1_lost_and_back(project)


def test_a_peer_cut_off_from_the_network_comes_back_once_it_is_there_again(start):
    project, _ = start(rounds=ROUNDS, deadline=2)
    network, peer = f"{project.name}_default", project.container("peer-1")
    sh("docker", "network", "disconnect", network, peer)
    wait_for(lambda: lost(project))
    sh("docker", "network", "connect", "--alias", "peer-1", network, peer)
    ended_with_peer_1_lost_and_back(project)


def test_a_link_that_loses_a_fifth_at_256_kilobits_costs_time_and_no_mask(start, commands):
    project, file = start(rounds=120, deadline="none")
    inside = ["nsenter", "-n", "-t", project.pid("peer-1")]
    sh(
        *inside,
        "tc",
        "qdisc",
        "add",
        "dev",
        "eth0",
        "root",
        "tbf",
        "rate",
        "256kbit",
        "burst",
        "16kb",
        "latency",
        "400ms",
    )
    drop = ["-m", "statistic", "--mode", "random", "--probability", "0.2", "-j", "DROP"]
    for chain in ("INPUT", "OUTPUT"):
        sh(*inside, "iptables", "-A", chain, "-i" if chain == "INPUT" else "-o", "eth0", *drop)
    wait_for(lambda: dropped(inside) > 10)
    assert set(project.end().values()) == {0}
    summary = project.summary()
    assert digests(summary) == local(commands, file)
    assert not any(peer.missing for peer in summary.peers)
    # a segment that was lost is sent again after 200 ms at the earliest, and that is what peers waited
    assert max(event.seconds.wait for event in rounds(project, 1)) >= 0.2


def dropped(inside):
    listing = sh(*inside, "iptables", "-L", "-v", "-n", "-x").stdout.splitlines()
    return sum(int(line.split()[0]) for line in listing if "DROP" in line and "statistic" in line)


def rounds(project, peer):
    events = [parse(line) for line in project.read(f"peers/peer-{peer}.jsonl").splitlines()]
    return [event for event in events if isinstance(event, RoundReport)]
