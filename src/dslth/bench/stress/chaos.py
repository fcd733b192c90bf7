"""A run of peers that are killed, stopped and cut off every few rounds, beside the same run undisturbed."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import fmean
from typing import Any, Literal

import psutil

from dslth.bench.stress.relay import Relays, behind_relays, directed, whereabouts
from dslth.config import RunConfig
from dslth.engines.supervisor import Outcome, run_local
from dslth.runs.events import Event, RoundReport
from dslth.runs.folder import RunFolder
from dslth.seeds import Stream
from dslth.topology import Topology

__all__ = [
    "SIGNS",
    "ChaosResult",
    "Fault",
    "Injected",
    "disturbed",
    "measure",
    "record",
    "schedule",
    "verdict",
]

SIGNS = {"kill": "K", "stop": "S", "go on": "C", "cut": "X", "heal": "H"}
"""The letter of each fault, and of its end, in the picture."""
SLACK_SECONDS = 1.0
"""How long a busy machine may take to wake a peer up after its deadline."""
LAST = 0.85
"""Share of the rounds after which nothing is disturbed any more, so that every peer can come back."""
ONE_POINT = 0.01


@dataclass(frozen=True)
class Fault:
    """One fault: in which ``round`` of the foremost peer it happens, its kind, whom it hits, its longest time in s."""

    round: int
    kind: Literal["kill", "stop", "cut"]
    peer: int
    other: int | None = None
    lasts: float = 0.0


@dataclass(frozen=True)
class Injected:
    """A fault of SIGNS that was injected, or its end: the Unix time, and the peer or edge."""

    time: float
    what: str
    peer: int
    other: int | None = None


def schedule(run: RunConfig, topology: Topology, every: float) -> list[Fault]:
    """Draw the faults of a run from its seed, one every ``every`` rounds on average, whatever the machine's speed.

    They happen between the first checkpoint and LAST. Stops and cuts last up to two deadlines: some are over before
    any mask is missed, some are not.
    """
    experiment, stream, faults = run.experiment, Stream(run.experiment.seed, "chaos"), list[Fault]()
    round_ = experiment.checkpoint_every + 1.0
    while True:
        when, kind, long = map(float, stream.uniform(3))
        round_ += every * (0.5 + when)
        if round_ >= _last(run):
            return faults
        a, b = topology.edges[int(stream.choice(len(topology.edges), 1)[0])]
        lasts = 2 * float(experiment.deadline) * long
        if kind < 1 / 3:
            faults.append(Fault(int(round_), "kill", a))
        elif kind < 2 / 3:
            faults.append(Fault(int(round_), "stop", b, lasts=lasts))
        else:
            faults.append(Fault(int(round_), "cut", a, b, lasts))


def _last(run: RunConfig) -> int:
    return int(LAST * run.experiment.rounds)


# --- injecting them -------------------------------------------------------------------------------------------------


class _Injector(threading.Thread):
    """Injects all faults in their order: each in its round, once the one before is undone."""

    def __init__(self, faults: Sequence[Fault], run: RunConfig, relays: Relays, folder: RunFolder) -> None:
        super().__init__(name="dslth-chaos", daemon=True)
        self._faults, self._relays, self._folder, self._last = faults, relays, folder, _last(run)
        self._told = threading.Condition()
        self._front, self._killed, self._over = 0, dict[int, float](), False
        self.done: list[Injected] = []

    def take(self, event: Event) -> None:
        """Follow the run's reports."""
        if isinstance(event, RoundReport):
            with self._told:
                self._front = max(self._front, event.round + 1)
                if event.time > self._killed.get(event.peer, 0.0):
                    self._killed.pop(event.peer, None)  # it is back
                self._told.notify_all()

    def end(self) -> None:
        """Stop disturbing, and undo what still lasts."""
        with self._told:
            self._over = True
            self._told.notify_all()
        self.join()

    def run(self) -> None:
        """Disturb until the end."""
        for fault, after in zip(self._faults, [*self._faults[1:], None], strict=True):
            if not self._until(fault):
                return
            self._inject(fault)
            if fault.kind != "kill":
                self._until(after, fault.lasts)
                self._undo(fault)

    def _until(self, fault: Fault | None, seconds: float | None = None) -> bool:
        """Wait until a fault is due and can happen, or until no more may; False if the run is over before."""

        def due() -> bool:
            at_hand = self._front >= (fault.round if fault else self._last)
            return self._over or (at_hand and not (fault and fault.peer in self._killed))

        with self._told:
            self._told.wait_for(due, seconds)
            return not self._over

    def _inject(self, fault: Fault) -> None:
        if fault.kind == "cut":
            self._relays.cut(_both_ways(fault))
        elif not self._signal(fault.peer, signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP):
            return
        if fault.kind == "kill":
            with self._told:
                self._killed[fault.peer] = time.time()
        self._note(fault.kind, fault)

    def _undo(self, fault: Fault) -> None:
        if fault.kind == "cut":
            self._relays.heal(_both_ways(fault))
            self._note("heal", fault)
        elif self._signal(fault.peer, signal.SIGCONT):
            self._note("go on", fault)

    def _signal(self, peer: int, number: int) -> bool:
        """Send a signal; False if the peer's process is not there."""
        found = whereabouts(self._folder, peer)
        with suppress(psutil.Error, ProcessLookupError):
            if found and psutil.Process(found.pid).create_time() == found.born:  # else the id is another's by now
                os.kill(found.pid, number)
                return True
        return False

    def _note(self, what: str, fault: Fault) -> None:
        self.done.append(Injected(time.time(), what, fault.peer, fault.other))


def _both_ways(fault: Fault) -> list[tuple[int, int]]:
    assert fault.other is not None  # noqa: S101  (a cut has two ends)
    return [(fault.peer, fault.other), (fault.other, fault.peer)]


def disturbed(
    run: RunConfig, topology: Topology, folder: RunFolder, faults: Sequence[Fault]
) -> tuple[Outcome, list[Injected]]:
    """Run all peers of a topology behind relays while faults happen; return the outcome, and what was injected."""

    def port(peer: int) -> int | None:
        found = whereabouts(folder, peer)
        return found.port if found else None

    relays = Relays(directed(topology), port)
    injector = _Injector(faults, run, relays, folder)
    injector.start()
    try:
        surround = partial(behind_relays, ports=dict(relays.ports))
        done = run_local(run, topology, folder, watch=injector.take, restart=True, orphans=False, surround=surround)
        return done, injector.done
    finally:
        injector.end()
        relays.close()


# --- the result -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChaosResult:
    """The figures of a run. Accuracies are shares; waits are the longest of a round, in seconds, by peer.

    ``stopped`` is for how long a peer was stopped at a time, at the most: its own wait may hold all of that.
    """

    name: str
    seconds: float
    accuracy_personal: float | None
    accuracy_worst: float | None
    rounds_completed: Mapping[int, int]
    longest_wait: Mapping[int, float]
    deadlines_missed: Mapping[int, int]
    masks_missed: int
    faults: Mapping[str, int]
    restarts: int
    rejoined: int
    happenings: Mapping[str, int]
    failure: str | None
    stopped: Mapping[int, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return asdict(self)


def measure(name: str, run: RunConfig, outcome: Outcome, injected: Sequence[Injected] = ()) -> ChaosResult:
    """Work out a run's figures from its folder."""
    summary = outcome.measured()
    by_peer = outcome.folder.events()
    rounds = {peer: [e for e in events if isinstance(e, RoundReport)] for peer, events in by_peer.items()}
    waits = {peer: [event.seconds.wait for event in played] for peer, played in rounds.items()}
    told = [peer.accuracy_personal for peer in summary.peers if peer.accuracy_personal is not None]
    limit = float(run.experiment.deadline)
    restarts = [said for said in summary.happenings if said.what == "restarted"]
    return ChaosResult(
        name=name,
        seconds=summary.seconds,
        accuracy_personal=fmean(told) if told else None,
        accuracy_worst=min(told, default=None),
        rounds_completed={peer.id: peer.rounds_completed for peer in summary.peers},
        longest_wait={peer: max(seconds, default=0.0) for peer, seconds in waits.items()},
        deadlines_missed={peer: sum(wait >= 0.95 * limit for wait in seconds) for peer, seconds in waits.items()},
        masks_missed=sum(len(event.missing) for played in rounds.values() for event in played),
        faults=dict(Counter(done.what for done in injected if done.what in ("kill", "stop", "cut"))),
        restarts=len(restarts),
        rejoined=sum(_rejoined(rounds, said.peer, said.time) for said in restarts),
        happenings=dict(Counter(said.what for said in summary.happenings)),
        failure=str(outcome.failure) if outcome.failure else None,
        stopped=_stopped(injected),
    )


def _stopped(injected: Sequence[Injected]) -> dict[int, float]:
    """Return the longest time, in seconds, from a peer's stop until it went on, by peer."""
    since, longest = dict[int, float](), dict[int, float]()
    for done in injected:
        if done.what == "stop":
            since[done.peer] = done.time
        elif done.what == "go on":
            longest[done.peer] = max(done.time - since[done.peer], longest.get(done.peer, 0.0))
    return longest


def _rejoined(rounds: Mapping[int, Sequence[RoundReport]], peer: int, since: float) -> bool:
    """Return whether, after a time, a neighbour used the peer's masks, and the peer a neighbour's."""
    links = {neighbour for event in rounds[peer] for neighbour in event.links}
    uses = any(event.time > since and links - set(event.missing) for event in rounds[peer])
    used = any(event.time > since and peer not in event.missing for n in links for event in rounds.get(n, ()))
    return uses and used


def verdict(run: RunConfig, planned: Sequence[Fault], quiet: ChaosResult, figures: ChaosResult) -> dict[str, bool]:
    """Return, for each promise about a disturbed run, whether it holds."""
    limit, faults = float(run.experiment.deadline), sum(figures.faults.values())
    rounds = run.experiment.rounds
    accurate = None not in (quiet.accuracy_personal, figures.accuracy_personal)
    return {
        "every fault that was drawn happened": figures.faults == dict(Counter(fault.kind for fault in planned)),
        "every peer ends with the last round": figures.failure is None
        and all(done == rounds for done in figures.rounds_completed.values()),
        "no round waits longer than the deadline": all(
            wait <= limit + SLACK_SECONDS + figures.stopped.get(peer, 0.0)
            for peer, wait in figures.longest_wait.items()
        ),
        "no peer waits for more deadlines than there were faults": max(figures.deadlines_missed.values()) <= faults,
        "every restarted peer rejoins": figures.rejoined == figures.restarts,
        "accuracy is within one point": accurate
        and (quiet.accuracy_personal or 0) - (figures.accuracy_personal or 0) <= ONE_POINT,
    }


def record(
    runs: Sequence[ChaosResult], injected: Sequence[Injected], conditions: Mapping[str, bool], run: RunConfig
) -> dict[str, Any]:
    """Return everything, as ``chaos.json`` holds it."""
    return {
        "settings": run.model_dump(mode="json"),
        "runs": [figures.record() for figures in runs],
        "injected": [asdict(done) for done in injected],
        "conditions": dict(conditions),
    }
