"""The round loop of one peer: learn, send the mask, gather the neighbours' masks, fine-tune, report.

What a newcomer should know: a peer is one thread. Nothing that a neighbour does, or fails to do, holds it longer than
the round's deadline; nothing that arrives changes it but a mask that passed every check of ``wire``.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from dslth import tickets, wire
from dslth.config import RunConfig, identity
from dslth.errors import JoinError, WrongRunError
from dslth.events import Event, Finished, Joined, LinkStats, RoundReport, Seconds
from dslth.learner import Accuracies, Learner
from dslth.masks import BitMask
from dslth.sinks import Sink
from dslth.streams import Incoming, Outgoing
from dslth.topology import Topology
from dslth.transport import Delivery, Transport
from dslth.wire import Kind, Refusal, Refused

__all__ = ["Peer", "Place"]

TICK = 0.2
"""Seconds after which a waiting peer looks whether it was asked to end."""
AHEAD = 8
"""Rounds that a neighbour's mask may be ahead and still be kept for later."""
KEEP = 2
"""Own masks that are kept for neighbours that lost one and may be a round behind."""
EXTRA = 256
"""Messages that a peer takes in at most once it has all masks of a round, so that a flood does not hold it."""
LEAVE_SECONDS = 5.0
"""How long a peer that is done stays for neighbours that are not."""
REFUSED_SECONDS = 5.0
"""How long a peer that was refused stays to say so to the one that refused it, should that one ask."""


@dataclass(frozen=True)
class Place:
    """A peer's place in a run: who it is, the run, and where its neighbours listen."""

    peer: int
    run: RunConfig
    topology: Topology
    addresses: Sequence[str]
    join_timeout: float = 60.0

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The peers that this one talks to."""
        return self.topology.neighbours(self.peer)


@dataclass
class _Edge:
    """Bytes exchanged with a neighbour so far."""

    payload_sent: int = 0
    payload_received: int = 0
    message_sent: int = 0
    message_received: int = 0


@dataclass
class _Clock:
    """Seconds spent in each phase of the current round."""

    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - start


class Peer:
    """One peer of a run, from its first hello to its last bye. ``transport`` listens already."""

    def __init__(
        self, place: Place, learner: Learner, transport: Transport, sinks: Sequence[Sink], stop: threading.Event
    ) -> None:
        self.place, self._learner, self._transport = place, learner, transport
        self._sinks, self._stop = sinks, stop
        self._experiment = place.run.experiment
        sizes = learner.sizes
        self._identity = identity(place.run, place.topology.digest) | {"layout": "+".join(map(str, sizes))}
        self._me = wire.Hello(wire.run_digest(self._identity), sizes, learner.ones)
        forecast = learner.forecast(place.peer, learner.ones)
        self._outgoing = Outgoing(self._me.digest, place.peer, self._experiment.codec, forecast, KEEP)
        self._incoming = Incoming(
            lambda peer, hello: learner.forecast(peer, hello.ones),
            fewer_ones=self._experiment.algorithm.min_filter_weights > 0,
        )
        self._resynced: set[tuple[int, int]] = set()
        self._edges = {neighbour: _Edge() for neighbour in place.neighbours}
        self._reported = dict.fromkeys(self._edges, LinkStats())
        self._greeted: dict[int, wire.Hello] = {}
        self._met: set[tuple[int, Kind]] = set()
        self._differs: dict[int, str] = {}
        self._awaited = set(place.neighbours)
        self._inbox: dict[int, dict[int, BitMask]] = {}
        self._round = 0
        self._refused: Counter[str] = Counter()
        self._clock = _Clock()
        self._accuracy: Accuracies | None = None
        self._sent: BitMask | None = None

    def run(self, ticket: Path | None = None) -> Finished:
        """Take part in the run; gives the final report, and writes the ticket where a path is given.

        Raises JoinError and WrongRunError before the first round; never fails because of others after it.
        """
        if self._experiment.algorithm.exchange:
            self._join()
        else:
            self._awaited.clear()
        self._emit_joined()
        while self._round < self._experiment.rounds and not self._stop.is_set():
            if self._play(self._round):
                self._round += 1
        if self._experiment.algorithm.exchange:
            self._leave()
        return self._finish(ticket)

    # --- one round --------------------------------------------------------------------------------------------------

    def _play(self, round_: int) -> bool:
        """Play one round; False where the peer was asked to end in its middle."""
        self._clock = clock = _Clock()
        with clock.phase("compute"), self._slowed():
            mask, loss = self._learner.local_update(round_)
        masks: Mapping[int, BitMask] = {}
        if self._experiment.algorithm.exchange:
            acknowledge = {neighbour: self._incoming.held(neighbour) for neighbour in self.place.neighbours}
            with clock.phase("encode"):
                for neighbour, message in self._outgoing.messages(round_, mask, acknowledge):
                    self._send_mask(neighbour, message)
            masks = self._gather(round_)
            if self._stop.is_set():
                return False
            with clock.phase("fine_tune"), self._slowed():
                self._learner.fine_tune(masks)
        due = (round_ + 1) % self._experiment.evaluate_every == 0 or round_ + 1 == self._experiment.rounds
        if due:
            with clock.phase("evaluate"):
                self._accuracy = self._learner.evaluate()
        self._report(round_, mask, loss, masks, self._accuracy if due else None)
        return True

    def _gather(self, round_: int) -> dict[int, BitMask]:
        """Wait for the masks of a round from all who are there, up to the deadline.

        Whoever misses a deadline is not waited for again until it is heard of.
        """
        waited = time.monotonic()
        deadline = waited + self._experiment.deadline
        decoded = self._clock.spent.get("decode", 0.0)
        extra = 0
        while not self._stop.is_set():
            missing = self._awaited - self._inbox.get(round_, {}).keys()
            left = deadline - time.monotonic()
            if left <= 0:
                self._awaited -= missing
                break
            # with nobody missing, what is there already is taken in still: someone lost may have come back
            delivery = self._transport.receive(min(left, TICK) if missing else 0.0)
            if not missing and (delivery is None or extra == EXTRA):
                break
            extra += not missing
            self._take(delivery)
        decoded = self._clock.spent.get("decode", 0.0) - decoded
        self._clock.spent["wait"] = time.monotonic() - waited - decoded
        return self._inbox.pop(round_, {})

    @contextmanager
    def _slowed(self) -> Iterator[None]:
        """Stretch the time of a computation to that of a device of the profile's speed."""
        start = time.perf_counter()
        yield
        speed = self.place.run.device(self.place.peer).speed
        if speed < 1:
            self._stop.wait((time.perf_counter() - start) * (1 / speed - 1))

    # --- coming and going -------------------------------------------------------------------------------------------

    def _join(self) -> None:
        """Say hello to all neighbours until each has said it too, and welcomed this one.

        With both seen, no word from before the first round is under way any more.
        """
        for neighbour in self.place.neighbours:
            self._transport.connect(neighbour, self.place.addresses[neighbour])
            self._say_hello(neighbour)
        deadline = time.monotonic() + self.place.join_timeout
        refused_until: float | None = None
        while (missing := self._unmet()) and not self._stop.is_set():
            now = time.monotonic()
            if self._differs and refused_until is None:
                refused_until = now + REFUSED_SECONDS
            if refused_until is not None and (now >= refused_until or self._refused[Refusal.WRONG_RUN]):
                who, how = next(iter(self._differs.items()))
                raise WrongRunError(f"peer {who} belongs to another run: {how}; start both from the same topology file")
            if now >= deadline:
                raise JoinError(
                    f"peer {self.place.peer} waited {self.place.join_timeout:g} s for "
                    + ", ".join(f"peer {other} at {self.place.addresses[other]}" for other in sorted(missing))
                    + "; start them, mend their addresses, or raise --join-timeout"
                    + (
                        f" (refused so far: {', '.join(f'{why} {n}' for why, n in self._refused.items())})"
                        if self._refused
                        else ""
                    )
                )
            self._take(self._transport.receive(min(deadline - now, TICK)))

    def _unmet(self) -> set[int]:
        return {n for n in self._edges if {(n, Kind.HELLO), (n, Kind.WELCOME)} - self._met}

    def _leave(self) -> None:
        """Say bye, and stay until the neighbours did too: who leaves at once takes its connections' counters along."""
        for neighbour in self.place.neighbours:
            self._send(neighbour, wire.bye(self._me.digest, self.place.peer, self._round))
        deadline = time.monotonic() + LEAVE_SECONDS
        while self._awaited and not self._stop.is_set() and (left := deadline - time.monotonic()) > 0:
            self._take(self._transport.receive(min(left, TICK)))

    def _finish(self, ticket: Path | None) -> Finished:
        mask = self._learner.mask()
        if ticket is not None:
            shapes = tuple(tuple(w.shape) for w in self._learner.net.weights)
            tickets.store(tickets.Ticket(self.place.peer, self._experiment, shapes, mask), ticket)
        accuracy = self._accuracy
        finished = Finished(
            peer=self.place.peer,
            time=time.time(),
            rounds_completed=self._round,
            accuracy_personal=accuracy.personal if accuracy else None,
            accuracy_global=accuracy.common if accuracy else None,
            mask_digest=mask.digest,
            links=self._link_stats(),
            refused=dict(self._refused),
        )
        self._emit(finished)
        return finished

    # --- messages ---------------------------------------------------------------------------------------------------

    def _send(self, neighbour: int, frames: wire.Frames) -> bool:
        handed_over = self._transport.send(neighbour, frames)
        if handed_over:
            self._edges[neighbour].message_sent += sum(map(len, frames))
        return handed_over

    def _send_mask(self, neighbour: int, frames: wire.Frames) -> None:
        if self._send(neighbour, frames):
            self._edges[neighbour].payload_sent += len(frames[1])
        else:
            self._outgoing.lost(neighbour)

    def _say_hello(self, neighbour: int) -> None:
        held = self._incoming.held(neighbour)
        self._send(neighbour, wire.hello(Kind.HELLO, self._me, self.place.peer, self._round, held))

    def _answer(self, neighbour: int, delivery: Delivery, frames: wire.Frames) -> None:
        if self._transport.answer(delivery.route, frames):
            self._edges[neighbour].message_sent += sum(map(len, frames))

    def _take(self, delivery: Delivery | None) -> None:
        """Take in what arrived, or count why not."""
        for neighbour in self._transport.reconnected():
            self._say_hello(neighbour)
        if delivery is None:
            return
        try:
            with self._clock.phase("decode"):
                header = wire.read_header(delivery.frames, self._me.sizes)
                if header.sender not in self._edges:
                    raise Refused(Refusal.STRANGER)
                self._accept(header, delivery)
        except Refused as refused:
            self._refused[refused.reason] += 1
        else:
            self._edges[header.sender].message_received += sum(map(len, delivery.frames))

    def _accept(self, header: wire.Header, delivery: Delivery) -> None:
        sender, payload = header.sender, delivery.frames[1]
        from_its_address = delivery.answer_of == sender
        match header.kind:
            case Kind.MASK:
                self._accept_mask(header, payload)
            case Kind.HELLO:
                self._accept_hello(header, payload, delivery)
            case Kind.WELCOME if from_its_address:
                self._greet(header, payload)
                self._send_again_if_lost(header)
            case Kind.REFUSED if from_its_address:
                self._differs[sender] = wire.differences(self._identity, wire.read_refusal(payload))
            case Kind.BYE if sender in self._greeted:
                if header.tag != wire.tag(self._me.digest):
                    raise Refused(Refusal.WRONG_RUN)
                self._awaited.discard(sender)
            case _:
                raise Refused(Refusal.STRANGER)

    def _accept_hello(self, header: wire.Header, payload: bytes, delivery: Delivery) -> None:
        sender = header.sender
        try:
            self._greet(header, payload)
        except Refused as refused:
            if refused.reason is Refusal.WRONG_RUN:
                settings = wire.refusal(self._me.digest, self.place.peer, self._round, self._identity)
                self._answer(sender, delivery, settings)
            raise
        self._awaited.add(sender)
        self._transport.identify(delivery.route, sender)
        held = self._incoming.held(sender)
        self._answer(sender, delivery, wire.hello(Kind.WELCOME, self._me, self.place.peer, self._round, held))
        self._send_again_if_lost(header)

    def _send_again_if_lost(self, header: wire.Header) -> None:
        """Send key frames to a neighbour whose hello says that it holds less than it was sent."""
        held = self._incoming.held(header.sender)
        for frames in self._outgoing.again(header.sender, header.round, header.acknowledged, held):
            self._send_mask(header.sender, frames)

    def _greet(self, header: wire.Header, payload: bytes) -> None:
        hello = wire.read_hello(payload)
        if hello.digest != self._me.digest or hello.sizes != self._me.sizes:
            raise Refused(Refusal.WRONG_RUN)
        if self._greeted.setdefault(header.sender, hello) != hello:  # a device keeps its density within a run
            raise Refused(Refusal.WRONG_DENSITY)
        self._met.add((header.sender, Kind(header.kind)))

    def _accept_mask(self, header: wire.Header, payload: bytes) -> None:
        sender = header.sender
        if sender not in self._greeted:
            raise Refused(Refusal.NO_HELLO)
        if header.tag != wire.tag(self._me.digest):
            raise Refused(Refusal.WRONG_RUN)
        if header.round > self._round + AHEAD:
            raise Refused(Refusal.FUTURE)
        try:
            mask = self._incoming.read(header, payload, self._greeted[sender])
        except Refused as refused:
            if refused.reason in (Refusal.UNKNOWN_BASE, Refusal.CORRUPT):
                self._ask_for_key_frame(sender)
            raise
        if (-1 if header.acknowledged is None else header.acknowledged) < header.round - 1:
            self._outgoing.lost(sender)  # it went on without this peer's mask
        if header.round < self._round:  # too late for its round, but the next one may build on it
            raise Refused(Refusal.STALE)
        box = self._inbox.setdefault(header.round, {})
        if sender in box:
            raise Refused(Refusal.DUPLICATE)
        box[sender] = mask
        self._awaited.add(sender)
        self._edges[sender].payload_received += len(payload)

    def _ask_for_key_frame(self, sender: int) -> None:
        """Say hello as one that holds nothing; once a round, so that forged masks cannot make much of it."""
        if (sender, self._round) not in self._resynced:
            self._resynced = {(sender, self._round)} | {key for key in self._resynced if key[1] == self._round}
            self._incoming.lost(sender)
            self._say_hello(sender)

    # --- reports ----------------------------------------------------------------------------------------------------

    def _emit_joined(self) -> None:
        self._emit(
            Joined(
                peer=self.place.peer,
                time=time.time(),
                neighbours=self.place.neighbours,
                model=self._experiment.model.name,
                sizes=self._me.sizes,
                training_samples=self._learner.training_samples,
                device=self.place.run.device(self.place.peer).device,
                links=self._link_stats(),
            )
        )

    def _report(
        self, round_: int, mask: BitMask, loss: float, received: Mapping[int, BitMask], accuracy: Accuracies | None
    ) -> None:
        before, self._sent = self._sent, mask
        flips = None if before is None else (mask ^ before).density
        exchanges = self._experiment.algorithm.exchange
        self._emit(
            RoundReport(
                peer=self.place.peer,
                time=time.time(),
                round=round_,
                loss=loss,
                accuracy_personal=accuracy.personal if accuracy else None,
                accuracy_global=accuracy.common if accuracy else None,
                density=mask.density,
                flips=flips,
                mask_digest=mask.digest,
                links=self._link_stats(),
                seconds=Seconds(**self._clock.spent),
                missing=tuple(sorted(self._edges.keys() - received.keys())) if exchanges else (),
                refused=dict(self._refused),
                memory_bytes=_memory(),
            )
        )

    def _emit(self, event: Event) -> None:
        for sink in self._sinks:
            sink.emit(event)

    def _link_stats(self) -> dict[int, LinkStats]:
        """Give the bytes of each edge since the last report."""
        now = {neighbour: LinkStats(**asdict(edge)) for neighbour, edge in self._edges.items()}
        links = self._transport.link_bytes()
        if links is not None:
            for neighbour, link in links.items():
                now[neighbour] = now[neighbour].model_copy(
                    update={"link_sent": link.sent, "link_received": link.received}
                )
        before, self._reported = self._reported, now
        return {neighbour: stats - before[neighbour] for neighbour, stats in now.items()}


def _memory() -> int:
    """Give the resident memory of this process, in bytes; 0 where strangers' connections use up all descriptors."""
    try:
        return int(psutil.Process().memory_info().rss)
    except (OSError, psutil.Error):
        return 0
