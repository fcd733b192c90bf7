"""A run of peers that are killed, stopped and cut off every few seconds, beside the same run undisturbed."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any, Literal

import psutil

from dslth.bench.relay import Relays, behind_relays, directed, whereabouts
from dslth.config import RunConfig
from dslth.events import Event, RoundReport
from dslth.launcher import Outcome, run_local
from dslth.runfolder import RunFolder
from dslth.seeds import Stream
from dslth.topology import Topology

__all__ = [
    "SIGNS",
    "Fault",
    "Figures",
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
"""Share of the rounds after which nothing is disturbed any more, so that everybody can come back."""
ONE_POINT = 0.01


@dataclass(frozen=True)
class Fault:
    """One fault: ``seconds`` after the first peers learn, what happens to whom and for how long."""

    seconds: float
    kind: Literal["kill", "stop", "cut"]
    peer: int
    other: int | None = None
    lasts: float = 0.0


@dataclass(frozen=True)
class Injected:
    """Something that was done, at a Unix time: a fault of SIGNS or its end, to a peer or an edge."""

    time: float
    what: str
    peer: int
    other: int | None = None


def schedule(seed: int, topology: Topology, every: float, deadline: float) -> Iterator[Fault]:
    """Draw faults without end, one each ``every`` seconds more or less.

    Stops and cuts last up to two deadlines: some are over before anybody is missed, some are not.
    """
    stream, seconds = Stream(seed, "chaos"), 0.0
    while True:
        when, kind, long = map(float, stream.uniform(3))
        seconds += every * (0.5 + when)
        a, b = topology.edges[int(stream.choice(len(topology.edges), 1)[0])]
        lasts = 2 * deadline * long
        if kind < 1 / 3:
            yield Fault(seconds, "kill", a)
        elif kind < 2 / 3:
            yield Fault(seconds, "stop", b, lasts=lasts)
        else:
            yield Fault(seconds, "cut", a, b, lasts)


# --- doing it -------------------------------------------------------------------------------------------------------


class _Injector(threading.Thread):
    """Lets the faults happen, from the moment that every peer has a checkpoint until nearly the end."""

    def __init__(self, faults: Iterator[Fault], run: RunConfig, relays: Relays, folder: RunFolder, peers: int) -> None:
        super().__init__(name="dslth-chaos", daemon=True)
        self._faults, self._relays, self._folder = faults, relays, folder
        self._first, self._last = run.experiment.checkpoint_every + 1, int(LAST * run.experiment.rounds)
        self._rounds = dict.fromkeys(range(peers), 0)
        self._over, self._begun = threading.Event(), threading.Event()
        self._open: list[tuple[float, Fault]] = []
        self.done: list[Injected] = []

    def take(self, event: Event) -> None:
        """Follow the run's reports."""
        if isinstance(event, RoundReport):
            self._rounds[event.peer] = event.round + 1
            if min(self._rounds.values()) >= self._first:
                self._begun.set()

    def end(self) -> None:
        """Stop disturbing, and mend what is broken still."""
        self._over.set()
        self._begun.set()
        self.join()

    def run(self) -> None:
        """Disturb until the end."""
        self._begun.wait()
        start, fault = time.monotonic(), next(self._faults)
        while not self._over.is_set() and max(self._rounds.values()) < self._last:
            now = time.monotonic() - start
            self._mend(now)
            if now >= fault.seconds:
                self._befall(fault)
                fault = next(self._faults)
            ends = [seconds for seconds, _ in self._open]
            self._over.wait(max(0.0, min([fault.seconds, *ends]) - now))
        self._mend(float("inf"))

    def _befall(self, fault: Fault) -> None:
        if any({fault.peer, fault.other} & {other.peer, other.other} - {None} for _, other in self._open):
            return  # one thing at a time
        if fault.kind == "cut":
            self._relays.cut(_both_ways(fault))
        elif not self._signal(fault.peer, signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP):
            return
        self._note(fault.kind, fault)
        if fault.kind != "kill":
            self._open.append((fault.seconds + fault.lasts, fault))

    def _mend(self, now: float) -> None:
        for seconds, fault in [item for item in self._open if item[0] <= now]:
            self._open.remove((seconds, fault))
            if fault.kind == "cut":
                self._relays.heal(_both_ways(fault))
                self._note("heal", fault)
            elif self._signal(fault.peer, signal.SIGCONT):
                self._note("go on", fault)

    def _signal(self, peer: int, number: int) -> bool:
        """Send a signal; False where the peer's process is not there."""
        found = whereabouts(self._folder, peer)
        with suppress(psutil.Error, ProcessLookupError):
            if found and psutil.Process(found.pid).create_time() == found.born:  # else it is somebody else's by now
                os.kill(found.pid, number)
                return True
        return False

    def _note(self, what: str, fault: Fault) -> None:
        self.done.append(Injected(time.time(), what, fault.peer, fault.other))


def _both_ways(fault: Fault) -> list[tuple[int, int]]:
    assert fault.other is not None  # noqa: S101  (a cut has two ends)
    return [(fault.peer, fault.other), (fault.other, fault.peer)]


def disturbed(
    run: RunConfig, topology: Topology, folder: RunFolder, faults: Iterator[Fault]
) -> tuple[Outcome, list[Injected]]:
    """Run all peers of a topology behind relays while faults happen; what became of it, and what was done."""

    def port(peer: int) -> int | None:
        found = whereabouts(folder, peer)
        return found.port if found else None

    relays = Relays(directed(topology), port)
    injector = _Injector(faults, run, relays, folder, topology.peers)
    injector.start()
    try:
        be = partial(behind_relays, ports=dict(relays.ports))
        return run_local(run, topology, folder, watch=injector.take, restart=True, orphans=False, be=be), injector.done
    finally:
        injector.end()
        relays.close()


# --- what came of it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What a run came to. Accuracies are shares, waits are the longest of a round in seconds, by peer."""

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

    def record(self) -> dict[str, Any]:
        """Give all of it, for JSON."""
        return asdict(self)


def measure(name: str, run: RunConfig, outcome: Outcome, injected: Sequence[Injected] = ()) -> Figures:
    """Work out a run's figures from its folder."""
    summary = outcome.summary
    by_peer = outcome.folder.events()
    rounds = {peer: [e for e in events if isinstance(e, RoundReport)] for peer, events in by_peer.items()}
    waits = {peer: [event.seconds.wait for event in played] for peer, played in rounds.items()}
    told = [peer["accuracy_personal"] for peer in summary["peers"] if peer["accuracy_personal"] is not None]
    limit = float(run.experiment.deadline)
    restarts = [said for said in summary["happenings"] if said["what"] == "restarted"]
    return Figures(
        name=name,
        seconds=summary["seconds"],
        accuracy_personal=fmean(told) if told else None,
        accuracy_worst=min(told, default=None),
        rounds_completed={peer["id"]: peer["rounds_completed"] for peer in summary["peers"]},
        longest_wait={peer: max(seconds, default=0.0) for peer, seconds in waits.items()},
        deadlines_missed={peer: sum(wait >= 0.95 * limit for wait in seconds) for peer, seconds in waits.items()},
        masks_missed=sum(len(event.missing) for played in rounds.values() for event in played),
        faults=dict(Counter(done.what for done in injected if done.what in ("kill", "stop", "cut"))),
        restarts=len(restarts),
        rejoined=sum(_rejoined(rounds, said["peer"], said["time"]) for said in restarts),
        happenings=dict(Counter(said["what"] for said in summary["happenings"])),
        failure=str(outcome.failure) if outcome.failure else None,
    )


def _rejoined(rounds: Mapping[int, Sequence[RoundReport]], peer: int, since: float) -> bool:
    """Tell whether after a moment a neighbour used the peer's masks, and the peer a neighbour's."""
    links = {neighbour for event in rounds[peer] for neighbour in event.links}
    uses = any(event.time > since and links - set(event.missing) for event in rounds[peer])
    used = any(event.time > since and peer not in event.missing for n in links for event in rounds.get(n, ()))
    return uses and used


def verdict(run: RunConfig, quiet: Figures, figures: Figures) -> dict[str, bool]:
    """Judge a disturbed run: what was promised, and whether it is so."""
    limit, faults = float(run.experiment.deadline), sum(figures.faults.values())
    rounds = run.experiment.rounds
    accurate = None not in (quiet.accuracy_personal, figures.accuracy_personal)
    return {
        "every peer ends with the last round": figures.failure is None
        and all(done == rounds for done in figures.rounds_completed.values()),
        "no round waits longer than the deadline": max(figures.longest_wait.values()) <= limit + SLACK_SECONDS,
        "no peer waits for more deadlines than there were faults": max(figures.deadlines_missed.values()) <= faults,
        "every restarted peer rejoins": figures.rejoined == figures.restarts,
        "accuracy is within one point": accurate
        and (quiet.accuracy_personal or 0) - (figures.accuracy_personal or 0) <= ONE_POINT,
    }


def record(
    runs: Sequence[Figures], injected: Sequence[Injected], conditions: Mapping[str, bool], run: RunConfig
) -> dict[str, Any]:
    """Give everything, as ``chaos.json`` holds it."""
    return {
        "settings": run.model_dump(mode="json"),
        "runs": [figures.record() for figures in runs],
        "injected": [asdict(done) for done in injected],
        "conditions": dict(conditions),
    }
