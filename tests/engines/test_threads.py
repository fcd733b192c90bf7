"""Peers as threads: one that fails is started again as a process is, and given up in the end."""

from dataclasses import replace

import pytest

from dslth import config, topology
from dslth.config import TransportName
from dslth.engines import supervisor
from dslth.errors import PeerFailedError
from dslth.runs.events import RoundReport
from dslth.runs.folder import RunFolder
from dslth.runs.sinks import Call
from live import what_happened

FAILS = 1


class BrokenError(Exception):
    pass


def fail(event):
    if isinstance(event, RoundReport) and event.round == 2:
        raise BrokenError("for good")


def surround(job, around):
    return replace(around, sinks=(*around.sinks, Call(fail))) if job.peer == FAILS else around


@pytest.mark.parametrize("restart", [True, False])
def test_a_thread_that_fails_for_good_is_given_up_and_named(topology_file, tmp_path, monkeypatch, restart):
    monkeypatch.setattr(supervisor, "BACK_OFF_SECONDS", 0.01)
    run = config.load(topology_file(rounds=5, deadline=1, checkpoint_every=1))
    outcome = supervisor.run_local(
        run,
        topology.build(run.graph, 7),
        RunFolder(tmp_path / "run"),
        transport=TransportName.MEMORY,
        restart=restart,
        surround=surround,
    )
    assert type(outcome.failure) is PeerFailedError
    assert str(outcome.failure) == f"peer {FAILS}: BrokenError: for good"
    happened = what_happened(outcome.summary)
    assert happened["restarted", FAILS] == (supervisor.RESTARTS if restart else 0)
    assert happened["gave-up", FAILS] == restart
    rounds = {peer.id: peer.rounds_completed for peer in outcome.summary.peers}
    assert rounds[0] == rounds[2] == 5  # they continue without it
