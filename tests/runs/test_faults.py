"""Faults on real peers: the run continues, nobody waits longer than the deadline for a fault, the reports say what was.

Four peers on a ring, each a process, each edge through a relay of its own; peer 1 is the one that things happen to.
"""

import os
import signal
from enum import Enum

import psutil
import pytest

from disturbed import Disturbed
from dslth.bench.stress import relay
from dslth.transport import faulty
from live import (
    digests,
    peers_of,
    processes_of,
    rounds_done,
    rounds_of,
    summary_of,
    wait_for,
    what_happened,
    write_topology,
)
from tap import free_ports

DEADLINE = 2.0
SLACK = 1.0
"""How long a loaded machine may take to wake a peer up."""
ROUNDS = 150
NEIGHBOURS = {0, 2}
OTHERS = {0, 2, 3}


def killed(d):
    d.signal(1, signal.SIGKILL)
    lost_by_neighbours(d)
    return {1: -signal.SIGKILL}


def killed_and_started_again(d):
    d.signal(1, signal.SIGKILL)
    lost_by_neighbours(d)
    d.start(1)
    back_with_neighbours(d)
    assert ("resumed", None) in d.noticed(1)


def killed_and_started_again_at_once(d):
    d.signal(1, signal.SIGKILL)
    d.start(1)
    wait_for(lambda: ("resumed", None) in d.noticed(1))


def stopped_for_a_while(d):
    d.signal(1, signal.SIGSTOP)
    lost_by_neighbours(d)
    d.signal(1, signal.SIGCONT)
    back_with_neighbours(d)
    assert not [what for what in d.noticed(1) if what[0] == "lost"]  # it stood still, and blames nobody


def stopped_for_a_moment(d):
    d.signal(1, signal.SIGSTOP)
    seen = len(d.rounds(3))
    d.signal(1, signal.SIGCONT)
    d.at_round(seen + 5, *range(4))
    assert not [what for peer in range(4) for what in d.noticed(peer)]


def one_edge_cut(d):
    cut_and_heal(d, d.relays.cut, [(0, 1), (1, 0)], [(0, 1), (1, 0)])


def one_edge_silent(d):
    cut_and_heal(d, d.relays.hold, [(0, 1), (1, 0)], [(0, 1), (1, 0)])


def one_direction_silent(d):
    cut_and_heal(d, d.relays.hold, [(1, 0)], [(0, 1)])


def two_halves(d):
    cut_and_heal(d, d.relays.cut, relay.across(d.graph, {0, 1}), [(0, 3), (1, 2), (2, 1), (3, 0)])


def two_silent_halves(d):
    cut_and_heal(d, d.relays.hold, relay.across(d.graph, {0, 1}), [(0, 3), (1, 2), (2, 1), (3, 0)])


def slow_link(d):
    d.relays.slow([(0, 1), (1, 0)], 50_000)


def asked_to_leave(d):
    d.signal(1, signal.SIGTERM)
    for peer in NEIGHBOURS:
        d.notices(peer, "left", 1)


def started_elsewhere(d):
    d.signal(1, signal.SIGKILL)
    lost_by_neighbours(d)
    port = free_ports(1)
    d.relays.cut([(0, 1), (2, 1)])  # nobody is where it was
    d.start(1, listen=f"tcp://127.0.0.1:{port}", advertise=f"tcp://127.0.0.1:{port}")
    for peer in NEIGHBOURS:
        d.notices(peer, "moved", 1)
    back_with_neighbours(d)


def lost_by_neighbours(d):
    for peer in NEIGHBOURS:
        d.notices(peer, "lost", 1)


def back_with_neighbours(d):
    for peer in NEIGHBOURS:
        d.notices(peer, "back", 1)


def cut_and_heal(d, cut, edges, who_loses_whom):
    cut(edges)
    for peer, lost in who_loses_whom:
        d.notices(peer, "lost", lost)
    d.relays.heal(edges)
    for peer, lost in who_loses_whom:
        d.notices(peer, "back", lost)


class Fault(Enum):
    """What can happen to peer 1, and whether it costs masks (None: as it comes)."""

    KILLED = killed, True
    KILLED_AND_STARTED_AGAIN = killed_and_started_again, True
    KILLED_AND_STARTED_AGAIN_AT_ONCE = killed_and_started_again_at_once, None
    STOPPED_FOR_A_WHILE = stopped_for_a_while, True
    STOPPED_FOR_A_MOMENT = stopped_for_a_moment, False
    ONE_EDGE_CUT = one_edge_cut, True
    ONE_EDGE_SILENT = one_edge_silent, True
    ONE_DIRECTION_SILENT = one_direction_silent, True
    TWO_HALVES = two_halves, True
    TWO_SILENT_HALVES = two_silent_halves, True
    SLOW_LINK = slow_link, False
    ASKED_TO_LEAVE = asked_to_leave, True
    STARTED_ELSEWHERE = started_elsewhere, True


@pytest.fixture
def disturbed(tmp_path):
    made = []

    def make(name="run", **changes):
        settings = {"rounds": ROUNDS, "deadline": DEADLINE, "evaluate_every": ROUNDS, "checkpoint_every": 3}
        file = write_topology(tmp_path / f"{name}.yaml", graph={"kind": "ring", "peers": 4}, **settings | changes)
        made.append(Disturbed(file, tmp_path / name))
        return made[-1]

    yield make
    for d in made:
        d.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The digest of each mask of the run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = write_topology(folder / "t.yaml", graph={"kind": "ring", "peers": 4}, rounds=ROUNDS, evaluate_every=ROUNDS)
    d = Disturbed(file, folder / "run")
    try:
        d.start()
        d.finish()
        return rounds_of(d.folder.path)
    finally:
        d.close()


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name.lower())
def test_the_run_goes_on(disturbed, undisturbed, fault):
    inject, costs = fault.value
    d = disturbed()
    d.start()
    d.at_round(6)
    ends_with = inject(d) or {}
    summary = d.finish()
    masks = rounds_of(d.folder.path)
    for peer, process in d.processes.items():
        assert process.exitcode == ends_with.get(peer, 0), peer
    whole = OTHERS if fault in (Fault.KILLED, Fault.ASKED_TO_LEAVE) else range(4)
    assert all(summary.peers[peer].rounds_completed == ROUNDS for peer in whole)
    nobody_waited_too_long(d)
    spoilt = [said.round for peer in range(4) for said in d.rounds(peer) if said.missing]
    spoilt += [said.round for peer in range(4) for said in d.events(peer) if said.event == "noticed"]
    assert costs is None or costs == bool(spoilt)
    first = min(spoilt, default=ROUNDS)
    assert {key: mask for key, mask in masks.items() if key[1] <= first}.items() <= undisturbed.items()


def nobody_waited_too_long(d):
    for peer in range(4):
        waits = [said.seconds.wait for said in d.rounds(peer)]
        assert max(waits) < DEADLINE + SLACK
        assert sum(wait >= DEADLINE for wait in waits) <= 1 + ("back" in dict(d.noticed(peer)))


@pytest.mark.parametrize(
    "faults", ["drop=0.05", "duplicate=0.3", "reorder=0.2", "corrupt=0.05", "delay=20ms", "drop=0.02,reorder=0.1"]
)
def test_a_bad_network_is_borne(disturbed, undisturbed, faults):
    d = disturbed(rounds=30, evaluate_every=30)
    d.start(faults=faulty.parse(faults))
    summary = d.finish()
    assert all(process.exitcode == 0 for process in d.processes.values())
    assert all(peer.rounds_completed == 30 for peer in summary.peers)
    assert all(said.seconds.wait < DEADLINE + SLACK for peer in range(4) for said in d.rounds(peer))
    if faults.startswith(("duplicate", "delay")):
        assert rounds_of(d.folder.path).items() <= undisturbed.items()
    if faults.startswith("duplicate"):
        assert all("duplicate" in peer.refused for peer in summary.peers)
    if faults.startswith("corrupt"):
        assert any({"corrupt", "malformed"} & peer.refused.keys() for peer in summary.peers)


def test_losses_cost_a_patient_run_time_and_no_mask(disturbed, undisturbed):
    d = disturbed(rounds=15, evaluate_every=15, deadline="none")
    d.start(faults=faulty.parse("drop=0.1,corrupt=0.03"))
    summary = d.finish()  # byes are lost too, and nobody waits for ever
    assert all(process.exitcode == 0 for process in d.processes.values())
    assert not any(peer.missing for peer in summary.peers)
    masks = rounds_of(d.folder.path)
    assert len(masks) == 4 * 15
    assert masks.items() <= undisturbed.items()


@pytest.mark.parametrize("mode", ["deadline", "async"])
def test_a_peer_that_joins_late_is_welcome(disturbed, mode):
    d = disturbed(mode=mode, rounds=200, evaluate_every=200)
    d.start(0, 2, 3, join_timeout=1)
    d.at_round(5, *OTHERS)
    lost_by_neighbours(d)
    d.start(1, join_timeout=5)
    back_with_neighbours(d)
    summary = d.finish()
    assert [peer.rounds_completed for peer in summary.peers] == [200] * 4
    assert all(not d.rounds(peer)[-1].missing or mode == "async" for peer in NEIGHBOURS)
    assert any(not said.missing for said in d.rounds(1))
    assert d.rounds(1)[0].round > 0  # it begins where the others are


def test_a_peer_that_stood_still_gives_its_neighbours_the_rest_of_the_deadline(disturbed):
    d = disturbed()
    d.start()
    d.at_round(6)
    d.relays.hold([(0, 1), (2, 1)])
    waiting = psutil.Process(d.processes[1].pid)
    wait_for(lambda: waiting.cpu_percent(interval=0.3) < 5)
    d.signal(1, signal.SIGSTOP)
    lost_by_neighbours(d)
    d.signal(1, signal.SIGCONT)
    d.relays.heal([(0, 1), (2, 1)])
    back_with_neighbours(d)
    d.finish()
    assert not [what for what in d.noticed(1) if what[0] == "lost"]
    assert max(said.seconds.wait for said in d.rounds(1)) < DEADLINE + SLACK


def test_in_async_mode_nobody_waits_for_a_stopped_peer(disturbed):
    d = disturbed(mode="async", rounds=300, evaluate_every=300, staleness=5)
    d.start()
    d.at_round(6)
    d.signal(1, signal.SIGSTOP)
    there = len(d.rounds(1))
    d.at_round(there + 20, *OTHERS)
    d.signal(1, signal.SIGCONT)
    d.finish()
    for peer in NEIGHBOURS:
        assert max(said.seconds.wait for said in d.rounds(peer)) < SLACK
        assert any(1 in said.missing for said in d.rounds(peer))  # too old to be used


def test_a_killed_peer_costs_one_deadline_and_comes_back_by_itself(commands, tmp_path):
    file = write_topology(tmp_path / "t.yaml", rounds=150, deadline=3, evaluate_every=150)
    run = commands.start("dslth", "run", "-t", file, "--out", out := tmp_path / "run", "--json")
    wait_for(lambda: rounds_done(out, 3) >= 6)
    wait_for(lambda: peers_of(run.pid).get(1)).kill()
    summary = summary_of(run)
    happened = what_happened(summary)
    assert happened["died", 1] == happened["restarted", 1] == happened["resumed", 1] == 1
    assert [peer.rounds_completed for peer in summary.peers] == [150] * 3
    shown = commands.run("dslth", "inspect", out).stdout
    assert "killed by signal 9" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_peers_learn_on_when_the_launcher_dies(commands, tmp_path):
    run, out = launched(commands, tmp_path, rounds=150)
    run.kill()
    run.wait()
    wait_for(lambda: rounds_done(out, 3) == 150)
    assert wait_for(lambda: not processes_of(run.pid)) is True
    alone = write_topology(tmp_path / "again.yaml", rounds=150, evaluate_every=150)
    again = summary_of(commands.start("dslth", "run", "-t", alone, "--transport", "memory", "--json"))
    shown = summary_of(commands.start("dslth", "inspect", out, "--json"))
    assert digests(shown) == digests(again)


def test_peers_end_with_their_launcher_if_asked_to(commands, tmp_path):
    run, out = launched(commands, tmp_path, "--no-orphans", rounds=100_000)
    run.kill()
    run.wait()
    assert wait_for(lambda: not processes_of(run.pid)) is True
    assert rounds_done(out, 3) < 100_000


def launched(commands, tmp_path, *arguments, rounds):
    file = write_topology(tmp_path / "t.yaml", rounds=rounds, evaluate_every=rounds)
    run = commands.start("dslth", "run", "-t", file, "--out", out := tmp_path / "run", *arguments)
    wait_for(lambda: rounds_done(out, 3) >= 3)
    return run, out


def test_a_peer_in_its_own_process_may_come_back_at_another_address(commands, tmp_path):
    base, elsewhere = free_ports(3), free_ports(1)
    file = write_topology(tmp_path / "t.yaml", network={"base_port": base}, rounds=400, deadline=3, evaluate_every=400)
    run = [commands.start("dslth-peer", "--id", i, "-t", file, "--out", "run", "--quiet") for i in range(3)]
    wait_for(lambda: rounds_done(tmp_path / "run", 3) >= 6)
    os.kill(run[1].pid, signal.SIGKILL)
    run[1].wait()
    there = f"tcp://127.0.0.1:{elsewhere}"
    run[1] = commands.start(
        "dslth-peer", "--id", 1, "-t", file, "--out", "run", "--quiet", "--listen", there, "--advertise", there
    )
    for process in run:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    shown = summary_of(commands.start("dslth", "inspect", "run", "--json"))
    moved = [(h.peer, h.neighbour, h.detail) for h in shown.happenings if h.what == "moved"]
    assert sorted(moved) == [(0, 1, there), (2, 1, there)]
