"""Pace costs no bytes: slow peers, pauses and busy machines leave every mask sent once; losses cost a little.

Who waits asks, ever less often: some 40 bytes for each doubling of the time.
"""

import signal
import time

import pytest

from disturbed import Disturbed
from dslth.transport import faulty
from live import rounds_of, write_topology


@pytest.fixture
def ring(tmp_path):
    """Run a ring of four peers; what became of it."""
    made = []

    def run(name, disturb=None, *, faults=None, **settings):
        file = write_topology(tmp_path / f"{name}.yaml", graph={"kind": "ring", "peers": 4}, **settings)
        d = Disturbed(file, tmp_path / name)
        made.append(d)
        d.start(faults=faulty.parse(faults) if faults else None)
        if disturb:
            disturb(d)
        summary = d.finish()
        assert [process.exitcode for process in d.processes.values()] == [0] * 4
        return summary, rounds_of(d.folder.path), [d.rounds(peer) for peer in range(4)]

    yield run
    for d in made:
        d.close()


def refused(summary):
    return [peer.refused for peer in summary.peers]


def test_a_slow_peer_costs_its_neighbours_time_and_no_bytes(ring):
    fast, masks, _ = ring("fast", rounds=6, evaluate_every=1)
    slow, same, reports = ring("slow", rounds=6, evaluate_every=1, peers={0: {"speed": 0.002}})
    assert same == masks
    assert max(report.seconds.wait for report in reports[1]) > 2  # long enough for peer 1 to have asked
    assert slow.payload_bytes_sent == fast.payload_bytes_sent
    assert slow.message_bytes_sent <= 1.04 * fast.message_bytes_sent
    assert refused(slow) == [{}] * 4


def test_a_pause_costs_no_bytes(ring):
    calm, masks, _ = ring("calm", rounds=60, evaluate_every=60)

    def pause(d):
        d.at_round(6)
        d.signal(0, signal.SIGSTOP)
        time.sleep(3)  # this is the pause: longer than its neighbours wait until they ask
        d.signal(0, signal.SIGCONT)

    paused, same, reports = ring("paused", pause, rounds=60, evaluate_every=60)
    assert same == masks
    assert max(report.seconds.wait for report in reports[1]) > 2
    assert paused.payload_bytes_sent == calm.payload_bytes_sent
    assert paused.message_bytes_sent <= 1.04 * calm.message_bytes_sent
    assert refused(paused) == [{}] * 4


def test_losses_are_made_up_for_at_little_more_than_their_own_size(ring):
    settings = {"rounds": 40, "evaluate_every": 40, "deadline": "none"}
    calm, masks, _ = ring("calm", **settings)
    lossy, same, _ = ring("lossy", faults="drop=0.05", **settings)
    assert same == masks
    assert any("unknown-base" in reasons for reasons in refused(lossy))  # masks were lost
    assert lossy.message_bytes_sent <= 1.3 * calm.message_bytes_sent
