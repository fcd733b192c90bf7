"""Thousands of peers in one process and a few helpers: the real protocol and coding on a virtual network and clock.

Every peer has a core of its own and all that it sends goes, byte for byte, through the others' checks; but nothing is
carried by a socket, what many receive is decoded once, and time is what settings declare: ``step_seconds`` of a device
for each local step, divided by its ``speed``, and what ``transport.links`` works out for each message. Fine-tuning,
coding and evaluation take no virtual time. So the times of a run are the same on any machine, and its masks are those
of a run over sockets wherever these do not depend on time, as in ``sync`` mode.

The learners are in processes, one a core, since they take nearly all of the real time. Those of one process take turns.
To compute several at once, by grouped convolutions or ``torch.func.vmap``, was tried on digits with 8 and 32 peers and
does not win: forward and backward of the cnn took .92 to 1.6 times as long, with other last bits; those of the mlp .63
to 1 times as long, but they are less than half of its turn.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dslth import wire
from dslth.config import Phase, identity
from dslth.engines.base import Failure, PeerJob
from dslth.errors import ConfigError, DslthError, OutputError, PeerFailedError
from dslth.exchange.actions import Action, Answer, Connect, Notice, Refuse, Send, Took
from dslth.exchange.ledger import Ledger
from dslth.exchange.protocol import Exchange, Place
from dslth.exchange.shared import SharedCoding
from dslth.exchange.virtual import Life, VirtualNetwork, VirtualPeer
from dslth.runs.events import Event, RoundReport
from dslth.runs.sinks import Call
from dslth.seeds import Stream
from dslth.transport.base import Delivery
from dslth.transport.links import Channel, between
from dslth.transport.memory import MemoryNetwork, MemoryTransport
from dslth.wire import Hello, Kind

if TYPE_CHECKING:
    from dslth.engines.workers import Known, Turn, Workers

__all__ = ["Batched"]


class _Peer(VirtualPeer[Any, Any]):
    """One peer: what it counts, and its links to its neighbours; ``unsaid`` is a round's report before evaluation."""

    def __init__(self, job: PeerJob, known: "Known", ledger: Ledger, links: Mapping[int, Channel]) -> None:
        super().__init__(job.peer)
        self.job, self.known, self.ledger, self.links = job, known, ledger, links
        device, algorithm = job.run.device(job.peer), job.run.experiment.algorithm
        self.round_seconds = algorithm.local_steps * device.step_seconds / device.speed
        self.unsaid: RoundReport | None = None


class _Network(VirtualNetwork[_Peer]):
    """All peers of a run, and the links between them.

    ``reports`` are those that nobody has taken yet; ``turn_of`` is the peer whose learner was waited for last.
    """

    def __init__(self, jobs: Sequence[PeerJob], workers: "Workers", known: "Mapping[int, Known]", began: float) -> None:
        super().__init__()
        self.reports: list[Event] = []
        self.failures: dict[int, Failure] = {}
        self.turn_of = 0
        self._workers, self._began = workers, began
        run, topology = jobs[0].run, jobs[0].topology
        sizes, settings = known[0].sizes, known[0].settings
        agreed = identity(run, topology.digest) | {"layout": "+".join(map(str, sizes)), **settings}
        digest, coding = wire.run_digest(agreed), SharedCoding(jobs[0].method(jobs[0]).coding)
        addresses = [f"virtual://{peer}" for peer in range(topology.peers)]
        self.peers = []
        for job in jobs:
            mine, neighbours = known[job.peer], topology.neighbours(job.peer)
            ledger = Ledger(
                job.peer,
                neighbours,
                MemoryTransport(MemoryNetwork(), job.peer),
                (Call(self._report(job.folder.reports(job.peer))),),
                lambda: self._began + self.now,
            )
            links = {
                other: Channel(between(run, job.peer, other), Stream(run.experiment.seed, "link", job.peer, other))
                for other in neighbours
            }
            peer = _Peer(job, mine, ledger, links)
            place = Place(job.peer, run, topology, addresses, job.join_timeout)
            peer.core = Exchange(place, Hello(digest, sizes, mine.ones), agreed, coding, lambda: self.now)
            peer.life, peer.alive = self._life(peer), True
            self.peers.append(peer)
            self.at(0.0, self.go_on, peer)

    def _report(self, file: Path) -> Callable[[Event], None]:
        def report(event: Event) -> None:
            self.reports.append(event)
            try:
                with file.open("a", encoding="utf-8") as lines:  # thousands cannot be open all the time
                    lines.write(event.model_dump_json() + "\n")
            except OSError as error:
                raise OutputError(f"cannot write {file}: {error.strerror}; choose another folder with --out") from None

        return report

    # --- a peer's rounds --------------------------------------------------------------------------------------------

    def _life(self, peer: _Peer) -> Life:
        """Play a peer's rounds as ``peer.py`` does; the report of a round waits for the next turn, and so do others."""
        core, ledger, experiment, known = peer.core, peer.ledger, peer.job.run.experiment, peer.known
        exchanges = experiment.algorithm.exchange
        received: Mapping[int, Any] | None = None
        if exchanges:
            core.join(resumed=False)
            while core.busy:
                yield None
        device = peer.job.run.device(peer.id).kind
        ledger.joined(experiment.model.title, known.sizes, known.training_samples, device, known.processor)
        while core.round < experiment.rounds:
            core.catch_up()
            asked = self._workers.learn(peer.id, core.round, received, evaluate=self._evaluates(peer))
            yield peer.round_seconds
            turn = self._said(peer, asked)
            ledger.spend(Phase.COMPUTE, peer.round_seconds)
            if exchanges:
                core.send(turn.message)
                began = self.now
                core.gather()
                while core.busy:
                    yield None
                ledger.waited(self.now - began)
                received = core.received
            missing = set(peer.links) - received.keys() if received is not None else set[int]()
            peer.unsaid = ledger.end_round(core.round, turn.message, turn.loss, missing)
            core.end_round()
        ticket = peer.job.folder.ticket(peer.id)
        asked = self._workers.finish(peer.id, received, ticket, evaluate=self._evaluates(peer))
        yield 0.0  # while it evaluates, so do others
        result = self._said(peer, asked)
        if exchanges:
            core.leave()
            while core.busy:
                yield None
        ledger.finished(core.round, result.message)

    def _evaluates(self, peer: _Peer) -> bool:
        """Return whether the round that a peer has just played is one to evaluate."""
        played = peer.unsaid.round + 1 if peer.unsaid else 0
        last = peer.job.run.experiment.rounds
        return played > 0 and (played % peer.known.evaluate_every == 0 or played == last)

    def _said(self, peer: _Peer, asked: "Future[Turn]") -> "Turn":
        """Wait for a peer's turn, and report the round before it."""
        self.turn_of = peer.id
        turn = asked.result()
        if peer.unsaid:
            peer.ledger.report(peer.unsaid, turn.accuracies)
            peer.unsaid = None
        return turn

    # --- what the network does --------------------------------------------------------------------------------------

    def act(self, peer: _Peer, action: Action) -> None:
        """Carry out an action of a peer's core."""
        match action:
            case Send(neighbour, kind, frames):
                if neighbour in peer.connected:
                    peer.ledger.sent(neighbour, frames, mask=kind is Kind.MASK)
                    self._transmit(peer, neighbour, Delivery(b"".join(frames), route=peer.id))
                else:
                    peer.core.unsent(action)
            case Answer(neighbour, _, frames):
                if self.peers[neighbour].alive:
                    peer.ledger.sent(neighbour, frames)
                    self._transmit(peer, neighbour, Delivery(b"".join(frames), None, answer_of=peer.id))
            case Connect(neighbour):
                self.at(peer.links[neighbour].send(self.now, 0), self._open, peer, neighbour)
            case Took(neighbour, kind, frames):
                peer.ledger.received(neighbour, frames, mask=kind is Kind.MASK)
            case Refuse(reason):
                peer.ledger.refuse(reason)
            case Notice(what, round_, whom, detail):
                peer.ledger.notice(what, round_, whom, detail)

    def _transmit(self, peer: _Peer, neighbour: int, delivery: Delivery) -> None:
        message = delivery.message
        arrives = peer.links[neighbour].send(self.now, len(message) if message else 0)
        self.at(arrives, self._arrive, self.peers[neighbour], delivery)

    def _arrive(self, peer: _Peer, delivery: Delivery) -> None:
        if peer.alive:
            peer.inbox.append(delivery)
            if peer.waits:
                self.go_on(peer)

    def _open(self, peer: _Peer, neighbour: int) -> None:
        """Let a peer learn, when its first packet has gone there and back, that a neighbour is connected."""
        self.at(self.peers[neighbour].links[peer.id].send(self.now, 0), self._opened, peer, neighbour)

    def _opened(self, peer: _Peer, neighbour: int) -> None:
        peer.connected |= {neighbour}
        peer.opened.append(neighbour)
        if peer.waits:
            self.look_up(peer)

    def ended(self, peer: _Peer, error: DslthError | None) -> None:
        """Close a peer's connections; its neighbours learn of it behind its last messages."""
        if error is not None:
            self.failures[peer.id] = Failure.of(error)
        peer.over, peer.alive = True, False
        for neighbour, link in peer.links.items():
            self.at(link.send(self.now, 0), self._closed, self.peers[neighbour], peer.id)

    def _closed(self, peer: _Peer, neighbour: int) -> None:
        peer.connected -= {neighbour}
        if peer.waits:
            self.look_up(peer)


class Batched:
    """All peers of a run in this process, and their learners in a few others; see Engine.

    It plays while reports are asked for. Nothing is restarted, and nothing resumed. Raises ConfigError for what only
    peers with sockets and processes have.
    """

    met = True

    def __init__(self, jobs: Sequence[PeerJob]) -> None:
        if any(job.faults or job.surround for job in jobs):
            raise ConfigError("the batched engine has neither faults nor surroundings")
        from dslth.engines.workers import Workers  # torch is heavy: loaded only when needed

        self._jobs, self._over = jobs, False
        self._failures: dict[int, Failure] = {}
        for name in ("peers", "tickets"):
            (jobs[0].folder.path / name).mkdir(exist_ok=True)
        self._workers = Workers(jobs)
        self._network: _Network | None = None

    def events(self, timeout: float) -> list[Event]:
        """Play for some time; return the reports."""
        until = time.monotonic() + timeout
        while not self._over and time.monotonic() < until:
            try:
                self._over = not self._play(until)
            except BrokenProcessPool:
                killed = PeerFailedError("the process that it learns in was killed; is there memory left for it?")
                self._fail(killed, self._jobs)
            except Exception as error:
                self._fail(error, [self._jobs[self._network.turn_of]] if self._network else self._jobs)
        if self._network is None:
            return []
        reports, self._network.reports = self._network.reports, []
        return reports

    def _play(self, until: float) -> bool:
        """Do what is due next, or wait for the learners; False if nothing is."""
        if self._network is None:
            known = self._workers.known(until - time.monotonic())
            if known is None:
                return True
            launched = self._jobs[0].folder.launched() or time.time()
            self._network = _Network(self._jobs, self._workers, known, launched)
        return self._network.step()

    def _fail(self, error: Exception, failed: Sequence[PeerJob]) -> None:
        self._over = True
        for job in failed:
            self._failures[job.peer] = failure = Failure.of(error)
            if failure.trace:
                job.folder.reports(job.peer).with_suffix(".log").write_text(failure.trace, encoding="utf-8")

    def running(self) -> set[int]:
        """Return the peers that have neither finished nor failed."""
        if self._over:
            return set()
        if self._network is None:
            return {job.peer for job in self._jobs}
        return {peer.id for peer in self._network.peers if not peer.over}

    def restart(self, peer: int) -> None:
        """Do nothing: a peer that failed would fail again."""

    def ask_to_end(self) -> None:
        """Play no further; the rounds that have ended are reported."""
        self._over = True
        for peer in self._network.peers if self._network else ():
            if peer.unsaid:
                peer.ledger.report(peer.unsaid)

    def end(self) -> None:
        """End the processes."""
        self._workers.end()

    def failures(self) -> dict[int, Failure]:
        """Return the peers that failed, and why."""
        return self._failures | (self._network.failures if self._network else {})
