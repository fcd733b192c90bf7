"""A run under attack, beside a control, the same run without attacks: whether the honest peers suffer.

Peers 0 to 3 are a ring and learn at a steady pace; peer 4 computes for longer than libzmq's heartbeats. Peer 5, a
neighbour of 0 and 4, is the attacker's seat; in the control it joins and is silent. Both runs go on side by side on the
same machine, at a pace that leaves it time, so that any difference comes from the attacks.
"""

import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

import psutil

from dslth import keys, wire
from dslth.bench.stress.attacks import ATTACKS, ELSEWHERE, HOST, Attack, Canary, Foe, Seat
from dslth.config import Mode, NetworkConfig, RunConfig, Security, identity
from dslth.engines import server
from dslth.engines.base import PeerJob, Surroundings, run_peer
from dslth.errors import JoinError, MissingFileError
from dslth.learner import Learner
from dslth.masks import BitMask
from dslth.runs.events import Noticed, RoundReport
from dslth.runs.folder import RunFolder
from dslth.seeds import Stream
from dslth.show.tables import Fitted
from dslth.stop import Stop
from dslth.topology import Topology

__all__ = ["SiegeResult", "siege", "table"]

THINKER, SEAT = 4, 5
TOPOLOGY = Topology(6, ((0, 1), (0, 3), (0, 5), (1, 2), (2, 3), (4, 5)))
VICTIMS = TOPOLOGY.neighbours(SEAT)
HONEST = range(5)
PACE_SECONDS, THINKING_SECONDS = 0.2, 6.0
"""How long a round's computing takes: on the ring, and for the slow peer 4."""
DEADLINE, SLACK_SECONDS = 2.0, 1.0
ROUNDS = 100_000
DESCRIPTORS = 1024
"""Open files that a peer may have: the usual limit of a login."""
WARM_ROUNDS = 15
JOIN_SECONDS = 120.0
SETTLE_SECONDS = 20.0
END_SECONDS = 30.0
MOVES = 3.0
"""Connections per second that a peer may make to addresses that a neighbour claims: moves, and retries."""
SHARE, SPARE = 0.10, 2
"""Share of the rounds that attacks may cost; deadlines that they may cost instead, where that is more."""
GROWTH, BLOAT, LEFT_OPEN = 0.05, 256 << 20, 4
"""Growth of memory from one half to the other, memory above the control's, descriptors left at the end: the most."""


class _Sample(NamedTuple):
    time: float
    memory: int
    descriptors: int


@dataclass(frozen=True)
class Slot:
    """An attack on all victims, between two Unix times; ``heard``: connections made to addresses that it named."""

    attack: str
    begun: float
    ended: float
    messages: int
    connections: int
    heard: int


@dataclass(frozen=True)
class SiegeResult:
    """The figures of an attacked run and its control; each pair is the attacked run's and the control's.

    ``rounds`` by peer, ``furthest`` the highest round. ``longest``: seconds of a round without its computing.
    ``early``, ``late`` and ``most`` are resident memory in bytes: of the first half, of the second, and at most.
    ``missed``: honest peers' masks of honest neighbours, of ``expected``. ``heard``: connections made to addresses that
    an attacker named, by host.
    """

    security: Security
    seconds: float
    slots: Sequence[Slot]
    by_attack: Mapping[str, Mapping[str, float]]
    ended: Mapping[str, str]
    rounds: Mapping[int, tuple[int, int]]
    furthest: int
    longest: tuple[float, float]
    early: Mapping[int, tuple[float, float]]
    late: Mapping[int, tuple[float, float]]
    most: Mapping[int, tuple[float, float]]
    descriptors: Mapping[int, tuple[int, int]]
    missed: tuple[int, int]
    expected: int
    unsaved: int
    refused: Mapping[int, Mapping[str, int]]
    heard: Mapping[str, int]

    def conditions(self) -> dict[str, bool]:
        """Return, for each promise, whether it holds."""
        twice = len(self.slots) >= 2 * len({slot.attack for slot in self.slots})
        return {
            "every peer is alive to the end, and ends when it is asked to": not self.ended,
            "honest peers play as many rounds as in the control": all(
                control - attacked <= max(SHARE * control, self._spare(peer))
                for peer, (attacked, control) in self.rounds.items()
            ),
            "nobody is led to the run's end": self.furthest < ROUNDS // 2,
            "no round passes the deadline by more than a second": self.longest[0] <= DEADLINE + SLACK_SECONDS,
            "memory is bounded": all(attacked - control < BLOAT for attacked, control in self.most.values()),
            "memory is flat": not twice or all(self._growth(peer) < GROWTH for peer in HONEST),
            "no descriptor stays open": bool(self.ended)
            or all(late <= early + LEFT_OPEN for early, late in self.descriptors.values()),
            "honest masks arrive": self.missed[0] - self.missed[1] <= max(self.expected / 100, 8),
            "checkpoints are written": not self.unsaved,
            "few go where an attacker points, and none to another host without keys": all(
                slot.heard <= 5 + MOVES * len(VICTIMS) * (slot.ended - slot.begun) for slot in self.slots
            )
            and not (self.security == Security.NONE and self.heard.get(ELSEWHERE))
            and not self.heard.get("ipc"),
        }

    def _spare(self, peer: int) -> float:
        return SPARE * max(1.0, DEADLINE / (THINKING_SECONDS if peer == THINKER else PACE_SECONDS))

    def _growth(self, peer: int) -> float:
        growth = [late / early for early, late in zip(self.early[peer], self.late[peer], strict=True)]
        return growth[0] - max(1.0, growth[1])

    def record(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return asdict(self) | {"conditions": self.conditions()}


# --- the peers ------------------------------------------------------------------------------------------------------


class _Paced(Learner):
    """Computes for the same time in every round, whatever else the machine does."""

    def local_update(self, round_: int) -> tuple[BitMask, float]:
        begun = time.monotonic()
        learnt = super().local_update(round_)
        pace = THINKING_SECONDS if self.peer == THINKER else PACE_SECONDS
        time.sleep(max(0.0, begun + pace - time.monotonic()))
        return learnt


def _run(peer: int, run: RunConfig, folder: RunFolder, pipe: Any) -> None:
    """Run the process of an honest peer."""
    resource.setrlimit(resource.RLIMIT_NOFILE, 2 * (min(DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[0]),))
    stop = Stop()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def meet(address: str) -> Sequence[str]:
        pipe.send(address)
        addresses: Sequence[str] = pipe.recv()
        return addresses

    job = PeerJob(peer, run, TOPOLOGY, folder, listen=f"tcp://{HOST}:*", method=_paced)
    run_peer(job, Surroundings(stop, meet))


def _paced(job: PeerJob) -> Learner:
    return _Paced(job.peer, job.topology.peers, job.run.experiment, job.run.device(job.peer))


class _Group:
    """The honest peers of one run, and the seat among them."""

    def __init__(self, run: RunConfig, folder: RunFolder) -> None:
        self.folder = folder
        folder.begin(run, TOPOLOGY)
        if run.network and run.network.security == Security.CURVE:
            keys.make(folder.path / "keys", range(TOPOLOGY.peers))
        context = server.context()
        self.processes, pipes = {}, {}
        for peer in HONEST:
            pipes[peer], there = context.Pipe()
            process = context.Process(target=_run, args=(peer, run, folder, there), daemon=True)
            process.start()
            self.processes[peer] = process
        learner = Learner(SEAT, TOPOLOGY.peers, run.experiment, run.device(SEAT))
        settings = identity(run, TOPOLOGY.digest) | {"layout": "+".join(map(str, learner.sizes))}
        me = wire.Hello(wire.run_digest(settings), learner.sizes, learner.ones)
        mine = keys.choose(SEAT, run.network, VICTIMS, f"tcp://{HOST}:1", folder.path / "keys")
        self.canary = Canary()
        self.seat = Seat(SEAT, me, learner.mask(), ROUNDS, mine)
        addresses = [*(pipes[peer].recv() for peer in HONEST), self.seat.address]
        for pipe in pipes.values():
            pipe.send(addresses)
        for victim in VICTIMS:
            stream = Stream(run.experiment.seed, "siege", victim)
            port = int(addresses[victim].rpartition(":")[2])
            self.seat.foes[victim] = Foe(victim, port, self.seat, self.canary, stream)
        self.samples: dict[int, list[_Sample]] = {peer: [] for peer in HONEST}

    def attend(self, *, joining: bool = False) -> None:
        """Let the seat read its messages, and the canary count its connections."""
        self.seat.attend(joining=joining)
        self.canary.listen()

    def sample(self) -> None:
        """Measure from outside what each process holds."""
        for peer, process in self.processes.items():
            with suppress(psutil.Error):
                seen = psutil.Process(process.pid)
                self.samples[peer].append(_Sample(time.time(), seen.memory_info().rss, seen.num_fds()))

    def dead(self) -> dict[int, int]:
        """Return the exit codes of the peers that have ended."""
        return {peer: code for peer, process in self.processes.items() if (code := process.exitcode) is not None}

    def warm(self) -> bool:
        """Return whether the ring has reached its pace, and the slow peer has begun."""
        try:
            said = {
                peer: sum(isinstance(e, RoundReport) for e in events) for peer, events in self.folder.events().items()
            }
        except MissingFileError:
            return False
        return all(said.get(peer, 0) >= (1 if peer == THINKER else WARM_ROUNDS) for peer in HONEST)

    def ask_to_end(self) -> None:
        for process in self.processes.values():
            process.terminate()

    def end(self, patience: float = 0.0) -> dict[int, int | None]:
        """Wait for the processes, and kill those that are left; return the exit codes, None for killed ones."""
        give_up, codes = time.monotonic() + patience, dict[int, int | None]()
        for peer, process in self.processes.items():
            process.join(max(0.0, give_up - time.monotonic()))
            codes[peer] = process.exitcode
            process.kill()
            process.join()
        self.seat.close()
        self.canary.close()
        return codes


# --- the attack -----------------------------------------------------------------------------------------------------


def schedule(seed: int, seconds: float, names: Sequence[str]) -> Iterator[tuple[Attack, float]]:
    """Draw attacks endlessly, each once in random order, then again; all are shortened to fit once if need be."""
    stream, attacks = Stream(seed, "siege"), [ATTACKS[name] for name in names]
    share = min(1.0, seconds / sum(attack.seconds for attack in attacks))
    while True:
        for number in stream.permutation(len(attacks)):
            yield attacks[number], share * attacks[number].seconds


def siege(
    run: RunConfig,
    path: RunFolder,
    security: Security,
    seconds: float,
    names: Sequence[str] = tuple(ATTACKS),
    say: Callable[[str], None] = lambda line: None,
) -> SiegeResult:
    """Attack a run for ``seconds``, beside its control; ``security`` is ``none`` or ``curve``."""
    experiment = run.experiment.model_copy(
        update={
            "rounds": ROUNDS,
            "mode": Mode.SYNC,
            "deadline": DEADLINE,
            "checkpoint_every": 10,
            "evaluate_every": ROUNDS,
        }
    )
    network = NetworkConfig(security=security)
    settings = run.model_copy(update={"graph": TOPOLOGY.to_config(), "experiment": experiment, "network": network})
    groups: list[_Group] = []
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # attackers need more than their victims
    try:
        for name in ("attacked", "control"):
            groups.append(_Group(settings, RunFolder(path.path / f"{name}-{security}")))
        attacks = schedule(experiment.seed, seconds, names)
        return _Siege(groups[0], groups[1], security, say).figures(attacks, len(names), seconds)
    finally:
        for group in groups:
            group.end()


class _Siege:
    def __init__(self, attacked: _Group, control: _Group, security: Security, say: Callable[[str], None]) -> None:
        self._attacked, self._security, self._say = attacked, security, say
        self._groups = attacked, control
        self._slots: list[Slot] = []
        self._ended: dict[str, str] = {}
        self._looked = 0.0

    def figures(self, attacks: Iterator[tuple[Attack, float]], least: int, seconds: float) -> SiegeResult:
        """Run the attacks, each at least once, and return the figures."""
        if not self._until(lambda: all(group.warm() for group in self._groups), JOIN_SECONDS, joining=True):
            why = "".join(f" ({who} {how})" for who, how in self._ended.items())
            raise JoinError(f"no run to attack within {JOIN_SECONDS:.0f} s{why}; is the machine too busy?")
        before = {peer: self._held(peer)[-1].descriptors for peer in HONEST}
        begun, give_up = time.time(), time.monotonic() + seconds
        while (time.monotonic() < give_up or len(self._slots) < least) and not self._ended:
            attack, long = next(attacks)
            self._say(f"{self._security}, {max(0.0, give_up - time.monotonic()):.0f} s left: {attack.name}")
            self._slots.append(self._slot(attack, long))
        ended = time.time()
        self._until(lambda: self._settled(before), SETTLE_SECONDS)
        self._look(f"after {self._slots[-1].attack}")
        after = {peer: self._held(peer)[-1].descriptors for peer in HONEST}
        for group in self._groups:
            group.ask_to_end()
        for group in self._groups:
            for peer, code in group.end(END_SECONDS).items():
                if code != 0:
                    self._ended.setdefault(self._name(group, peer), f"{_how(code)} when it was asked to end")
        return self._measured(begun, ended, {peer: (before[peer], after[peer]) for peer in HONEST})

    def _slot(self, attack: Attack, seconds: float) -> Slot:
        """Attack all victims in one way."""
        foes = self._attacked.seat.foes
        steps = {victim: attack.steps(foe) for victim, foe in foes.items()}
        before, heard = sum((foe.did for foe in foes.values()), Counter[str]()), self._attacked.canary.heard.total()
        begun, at = time.time(), time.monotonic()
        give_up = at + seconds
        while (now := time.monotonic()) < give_up and not self._ended:
            for victim, foe in foes.items():
                try:
                    next(steps[victim])
                except OSError:  # zmq.ZMQError is one
                    steps[victim] = attack.steps(foe)
            self._attend()
            self._look(f"during {attack.name}")
            at = max(at + 1 / attack.rate, now)  # steps that are late are left out
            time.sleep(max(0.0, min(at, give_up) - time.monotonic()))
        for doing in steps.values():
            doing.close()
        did = sum((foe.did for foe in foes.values()), Counter[str]()) - before
        heard = self._attacked.canary.heard.total() - heard
        return Slot(attack.name, begun, time.time(), did["messages"], did["connections"], heard)

    def _attend(self, *, joining: bool = False) -> None:
        for group in self._groups:
            group.attend(joining=joining)

    def _look(self, when: str) -> None:
        """Measure, twice a second, what the processes hold, and whether they are alive."""
        if time.monotonic() < self._looked + 0.5:
            return
        self._looked = time.monotonic()
        for group in self._groups:
            group.sample()
            for peer, code in group.dead().items():
                self._ended.setdefault(self._name(group, peer), f"{_how(code)} {when}")

    def _until(self, condition: Callable[[], bool], seconds: float, *, joining: bool = False) -> bool:
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up and not self._ended:
            self._attend(joining=joining)
            self._look("with nobody attacking")
            if condition():
                return True
            time.sleep(0.05)
        return False

    def _settled(self, before: Mapping[int, int]) -> bool:
        return all(self._held(peer)[-1].descriptors <= before[peer] + LEFT_OPEN for peer in HONEST)

    def _held(self, peer: int) -> list[_Sample]:
        return self._attacked.samples[peer]

    def _name(self, group: _Group, peer: int) -> str:
        return f"peer {peer}" if group is self._attacked else f"the control's peer {peer}"

    # --- the result -------------------------------------------------------------------------------------------------

    def _measured(self, begun: float, ended: float, descriptors: Mapping[int, tuple[int, int]]) -> SiegeResult:
        events = [group.folder.events() for group in self._groups]
        played = [{peer: [e for e in said[peer] if isinstance(e, RoundReport)] for peer in HONEST} for said in events]
        within = [
            {peer: [e for e in rounds if begun <= e.time < ended] for peer, rounds in group.items()} for group in played
        ]
        missed, expected = [], 0
        for group in within:
            honest = {peer: set(TOPOLOGY.neighbours(peer)) - {SEAT} for peer in HONEST}
            missed.append(sum(len(honest[peer] & set(e.missing)) for peer, rounds in group.items() for e in rounds))
            expected = sum(len(honest[peer]) * len(rounds) for peer, rounds in group.items())
        middle = (begun + ended) / 2

        def memory(peer: int, first: float, last: float, of: Callable[[list[int]], float]) -> tuple[float, float]:
            held = [[s.memory for s in group.samples[peer] if first <= s.time <= last] for group in self._groups]
            return of(held[0] or [0]), of(held[1] or [0])

        return SiegeResult(
            security=self._security,
            seconds=ended - begun,
            slots=self._slots,
            by_attack={name: self._of(name, played) for name in dict.fromkeys(slot.attack for slot in self._slots)},
            ended=self._ended,
            rounds={peer: (len(within[0][peer]), len(within[1][peer])) for peer in HONEST},
            furthest=max(rounds[-1].round for rounds in played[0].values()),
            longest=(_longest(played[0], begun, ended), _longest(played[1], begun, ended)),
            early={peer: memory(peer, begun, middle, median) for peer in HONEST},
            late={peer: memory(peer, middle, float("inf"), median) for peer in HONEST},
            most={peer: memory(peer, begun, float("inf"), max) for peer in HONEST},
            descriptors=descriptors,
            missed=(missed[0], missed[1]),
            expected=expected,
            unsaved=sum(isinstance(e, Noticed) and e.what == "unsaved" for said in events[0].values() for e in said),
            refused={victim: played[0][victim][-1].refused for victim in VICTIMS},
            heard=dict(self._attacked.canary.heard),
        )

    def _of(self, name: str, played: Sequence[Mapping[int, Sequence[RoundReport]]]) -> dict[str, float]:
        """Work out what an attack did, and what it cost the ring."""
        slots = [slot for slot in self._slots if slot.attack == name]

        def rounds(group: Mapping[int, Sequence[RoundReport]]) -> int:
            times = [e.time for peer in HONEST if peer != THINKER for e in group[peer]]
            return sum(slot.begun <= time < slot.ended for slot in slots for time in times)

        return {
            "slots": len(slots),
            "messages": sum(slot.messages for slot in slots),
            "connections": sum(slot.connections for slot in slots),
            "rounds": rounds(played[0]) / max(1, rounds(played[1])),
            "longest": max(_longest(played[0], slot.begun, slot.ended + DEADLINE) for slot in slots),
        }


def _longest(played: Mapping[int, Sequence[RoundReport]], begun: float, ended: float) -> float:
    """Return the longest time that a round took without its computing, among those that ended in an interval."""
    return max(
        (
            e.time - before.time - before.seconds.evaluate - e.seconds.compute - e.seconds.fine_tune
            for rounds in played.values()
            for before, e in pairwise(rounds)
            if begun <= e.time < ended
        ),
        default=0.0,
    )


def _how(code: int | None) -> str:
    if code is None:
        return "did not end"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def table(found: SiegeResult) -> Fitted:
    """Show what each attack did, and what it cost."""
    rows = found.by_attack
    worst = min(found.rounds, key=lambda peer: found.rounds[peer][0] / max(1, found.rounds[peer][1]))
    memory = max(most for most, _ in found.most.values()) / 1e6
    return Fitted(
        f"attacked for {found.seconds:.0f} s, security {found.security}",
        {
            "attack": list(rows),
            "times": [f"{row['slots']:.0f}" for row in rows.values()],
            "connections": [f"{row['connections']:.0f}" for row in rows.values()],
            "messages": [f"{row['messages']:.0f}" for row in rows.values()],
            "rounds": [f"{100 * row['rounds']:.0f} %" for row in rows.values()],
            "longest, s": [f"{row['longest']:.2f}" for row in rows.values()],
        },
        note=f"Rounds are the ring's, of the control's in the same time; of the whole run peer {worst} played "
        f"{found.rounds[worst][0]} of {found.rounds[worst][1]}. Longest: a round without its computing; the control's "
        f"{found.longest[1]:.2f}. Memory at most {memory:.0f} MB.",
    )
