"""Peers of one machine learn in turn, and a turn that is lost is made good."""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import contextmanager

import pytest

from dslth import config, topology
from dslth.config import Phase
from dslth.engines import turns
from dslth.engines.base import PeerJob
from dslth.engines.processes import Processes
from dslth.engines.turns import Turns, at_once
from dslth.exchange.protocol import Place
from dslth.learner import Learner
from dslth.peer import Peer
from dslth.runs.folder import RunFolder
from dslth.stop import Stop
from dslth.transport.memory import MemoryNetwork, MemoryTransport


def test_as_many_learn_at_once_as_there_are_cores(monkeypatch):
    monkeypatch.setattr(turns.os, "sched_getaffinity", lambda pid: range(6))
    assert at_once([1, 1]) == 6
    assert at_once([1, 4]) == 1
    assert at_once([8]) == 1


def test_all_turns_that_there_are_and_no_more_are_taken_at_once(monkeypatch):
    monkeypatch.setattr(turns.os, "sched_getaffinity", lambda pid: range(2))
    given = Turns(multiprocessing.get_context("spawn"), [1] * 8)
    inside, most, met = set(), [], threading.Barrier(2)

    def learn(peer):
        with given.turn(peer):
            inside.add(peer)
            most.append(len(inside))
            met.wait(20)  # passes only if another has a turn at the same time
            inside.discard(peer)

    threads = [threading.Thread(target=learn, args=(peer,)) for peer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(most) == 8
    assert max(most) <= 2


@pytest.fixture
def one_core(monkeypatch):
    """The turns of two peers on one core; who waits for a lost one gives up soon."""
    monkeypatch.setattr(turns.os, "sched_getaffinity", lambda pid: range(1))
    monkeypatch.setattr(turns, "FIRST", 0.1)
    return Turns(multiprocessing.get_context("spawn"), [1, 1])


def die(given):
    with given.turn(0):
        os._exit(0)


def test_the_turn_of_a_dead_peer_is_given_back(one_core, monkeypatch):
    dying = multiprocessing.get_context("spawn").Process(target=die, args=(one_core,))
    dying.start()
    dying.join(60)
    assert not one_core._free.acquire(block=False)
    one_core.give_back(0)
    one_core.give_back(0)  # twice is once
    monkeypatch.setattr(turns, "FIRST", 600.0)
    with one_core.turn(1):
        assert not one_core._free.acquire(block=False)
    assert one_core._free.acquire(block=False)


def die_in_turn(job, around):
    if job.peer == 0:
        with around.turn():
            os.kill(os.getpid(), signal.SIGKILL)
    return around


def test_the_launcher_gives_back_the_turn_of_a_peer_that_is_killed_in_it(tmp_path):
    run = config.load("ring", {"graph": {"kind": "line", "peers": 2}})
    graph = topology.build(run.graph, 1)
    jobs = [PeerJob(peer, run, graph, RunFolder(tmp_path), surround=die_in_turn) for peer in range(2)]
    engine = Processes(jobs)
    try:
        engine._processes[0].join(60)
        assert engine._turns._steps[0] == 1
        assert 0 not in engine.running()
        assert engine._turns._steps[0] == 2
    finally:
        engine.end()


def test_who_waits_for_a_stopped_peer_learns_without_a_turn(one_core):
    with one_core.turn(0), one_core.turn(1):
        pass
    assert one_core._free.acquire(block=False)
    assert not one_core._free.acquire(block=False)


def test_waiting_for_a_turn_is_neither_computing_nor_stretched(monkeypatch):
    now, happened = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Told(Stop):
        def wait(self, seconds=None):
            happened.append(("stretched", seconds))
            now[0] += seconds

    @contextmanager
    def turn():
        now[0] += 100
        happened.append("taken")
        yield
        happened.append("given back")

    changes = {"graph": {"kind": "line", "peers": 2}, "experiment": {"model": {"name": "mlp"}}}
    run = config.load("ring", changes | {"peers": {0: {"speed": 0.5}}})
    place = Place(0, run, topology.build(run.graph, 1), ["a", "b"], 1.0)
    learner = Learner(0, 2, run.experiment, run.device(0))
    peer = Peer(place, learner, MemoryTransport(MemoryNetwork(), 0), [], Told(), turn=turn)
    with peer._computing(Phase.COMPUTE):
        now[0] += 3
    assert happened == ["taken", "given back", ("stretched", 3)]  # nobody waits for a peer that only seems slow
    assert peer._ledger.spent(Phase.WAIT) == 100
    assert peer._ledger.spent(Phase.COMPUTE) == 6
