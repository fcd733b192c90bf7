"""Peers that are killed by signal 9, as the kernel does where memory runs out: the run says so first, and soon."""

import os
import signal
import threading
from dataclasses import replace
from functools import partial

import pytest

from dslth import config, topology
from dslth.engines import supervisor
from dslth.errors import JoinError, PeerFailedError
from dslth.runs.events import RoundReport
from dslth.runs.folder import RunFolder
from dslth.runs.sinks import Call
from live import write_topology

VICTIM = 2
FOR_EVER = 10_000.0


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


def surround(job, around, *, at):
    """Let the victim note each start, and kill itself where it is told to."""
    folder = job.folder
    if job.peer == VICTIM:
        with (folder.path / "starts").open("a") as file:
            file.write("started\n")
        if at == "out of memory":
            (folder.path / "vmstat").write_text("pgfault 12\noom_kill 9\nnr_free_pages 3\n")
        if at in ("start", "out of memory"):
            kill_myself()
        first = started(folder) == 1
        round_ = 7 if at == "round 7" or (at == "round 7, then met" and first) else None
        sinks = (*around.sinks, Call(partial(watch, round_)))
        around = replace(around, meet=partial(meet, at, first, around.meet), sinks=sinks)
    return around


def meet(at, first, really, address):
    addresses = really(address)
    if at == "met once" and not first:
        threading.Event().wait()  # as slow as a machine that swaps
    if at in ("met", "met once") or (at == "round 7, then met" and not first):
        kill_myself()
    return addresses


def watch(round_, event):
    if isinstance(event, RoundReport) and event.round == round_:
        kill_myself()


def started(folder):
    return len((folder.path / "starts").read_text().splitlines())


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """Run three peers one of which is killed; the outcome, and how often that one was started."""
    monkeypatch.setattr(supervisor, "BACK_OFF_SECONDS", 0.02)

    def go(at, *, restart=True, join_timeout=FOR_EVER, **experiment):
        file = write_topology(tmp_path / "small.yaml", **{"rounds": 12, "checkpoint_every": 5, **experiment})
        run = config.load(file)
        folder = RunFolder(tmp_path / "run")
        outcome = supervisor.run_local(
            run,
            topology.build(run.graph, run.experiment.seed),
            folder,
            join_timeout=join_timeout,
            restart=restart,
            orphans=False,
            surround=partial(surround, at=at),
        )
        assert outcome.failure is not None
        return outcome, started(folder)

    return go


def blamed(outcome):
    assert type(outcome.failure) is PeerFailedError, outcome.failure
    assert str(outcome.failure).startswith(f"peer {VICTIM}: killed by signal 9 (SIGKILL)")
    return str(outcome.failure)


@pytest.mark.parametrize(("restart", "starts"), [(True, 2), (False, 1)])
@pytest.mark.parametrize("at", ["start", "met"])
def test_a_peer_that_is_killed_before_all_have_met_ends_the_run_and_is_named(killed, at, restart, starts):
    outcome, found = killed(at, restart=restart)
    assert "lack of memory" in blamed(outcome)
    assert found == starts  # and nobody waits for it, least of all for ever


def test_where_the_kernel_says_that_memory_ran_out_nothing_is_tried_again(killed, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    counters = tmp_path / "run/vmstat"
    counters.write_text("pgfault 10\noom_kill 7\n")
    monkeypatch.setattr(supervisor, "COUNTERS", counters)
    outcome, starts = killed("out of memory")
    assert "the kernel ended 2 for lack of memory" in blamed(outcome)
    assert starts == 1


def test_neighbours_that_waited_in_vain_for_a_killed_peer_are_not_blamed(killed):
    outcome, starts = killed("met once", join_timeout=3.0)
    assert starts == 2
    assert "join-timeout" not in blamed(outcome)


def test_neighbours_that_waited_in_vain_are_named_where_nobody_was_killed(killed):
    outcome, _ = killed("never", join_timeout=0.0)
    assert type(outcome.failure) is JoinError


@pytest.mark.parametrize(
    ("at", "deadline"), [("round 7, then met", 1), ("round 7, then met", "none"), ("round 7", "none")]
)
def test_a_peer_that_is_killed_again_and_again_is_given_up_though_it_plays_old_rounds(killed, at, deadline):
    outcome, starts = killed(at, deadline=deadline)
    blamed(outcome)
    assert starts == 1 + supervisor.RESTARTS
    assert [said.what for said in outcome.summary.happenings].count("gave-up") == 1
    rounds = {peer.id: peer.rounds_completed for peer in outcome.summary.peers}
    assert rounds[VICTIM] == 8
    assert (rounds[0] == rounds[1] == 12) == (deadline == 1)  # the others continue without it where they may


def test_the_counter_of_the_kernel():
    assert supervisor._oom_kills() >= 0
    assert "oom_kill " in supervisor.COUNTERS.read_text()
