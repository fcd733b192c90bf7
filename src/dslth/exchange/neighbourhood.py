"""A peer's neighbours: who is there, what was said, and which masks came; every message goes in or out here.

Nothing that a neighbour does, or fails to do, holds the peer longer than the round's deadline; nothing that arrives
changes it but a mask that passed every check of ``wire``.
"""

import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median_low

from dslth import wire
from dslth.config import RunConfig, identity
from dslth.errors import AddressError, JoinError, WrongRunError
from dslth.exchange.ledger import Ledger
from dslth.exchange.streams import Incoming, MaskCoding, Outgoing
from dslth.masks import BitMask
from dslth.run.events import Happening
from dslth.topology import Topology
from dslth.transport import Delivery, Transport
from dslth.wire import Kind, Refusal, Refused

__all__ = ["Neighbourhood", "Place"]

TICK = 0.2
"""Seconds after which a waiting peer looks whether it was asked to end."""
GREET_SECONDS = 2.0
"""After how long a peer says hello again, or bye, to one that does not answer."""
ASK_SECONDS = 1.0
"""After how long a peer asks, at the soonest, for a mask that does not come; twice as long each time."""
MOST_PATIENT_SECONDS = 60.0
"""How long it waits at most: it learns a neighbour's pace. Who was asked in vain is given twice as long from then on,
half as long again where it turns out to be ``QUICK`` times as fast, and the least where something was lost."""
QUICK = 8
AGAIN_SECONDS = 1.0
"""How long a peer at least lets pass within a round until it says again that masks are lost, or sends them again."""
AGAIN_SHARE = 0.1
"""Share of its time that a peer at most spends on sending masks again to one neighbour."""
MOVE_SECONDS = 5.0
"""How long a peer at least lets pass between two moves of a neighbour."""
AHEAD = 8
"""Rounds that a neighbour's mask may be ahead and still be kept for later, besides those between checkpoints."""
BEHIND = 1
"""Rounds that a peer may be behind its neighbours without skipping any."""
SKIP = 16
"""Rounds that a peer skips at once, at most: a neighbour that lies about the round costs no more than that."""
PROBATION = 32
"""Rounds that pass after a neighbour's second loss until it is waited for once more; twice as many with each further.

Its masks count meanwhile, where they come in time. Who only says that it is there, over and over, holds nobody up.
"""
EXTRA, EXTRA_SECONDS = 256, 0.5
"""Messages that a peer takes in at most once a round is over, and for how long, so that a flood does not hold it."""
STOPPED_SECONDS = 1.0
"""A peer that looks up from waiting after longer than this was stopped, or its machine was."""
LEAVE_SECONDS = 5.0
"""How long a peer that is done stays for neighbours that are not."""
REFUSED_SECONDS = 5.0
"""How long a peer that was refused stays to say so to those that refused it, should they ask."""


@dataclass(frozen=True)
class Place:
    """A peer's place in a run: who it is, the run, and where its neighbours listen.

    ``advertise`` is the peer's own address where that is not what its neighbours know.
    """

    peer: int
    run: RunConfig
    topology: Topology
    addresses: Sequence[str]
    join_timeout: float = 60.0
    advertise: str = ""

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The peers that this one talks to."""
        return self.topology.neighbours(self.peer)


class _Asking:
    """When to ask each neighbour: after its ``patience`` in seconds, and then after twice as long each time.

    Never less often than every ``most`` seconds.
    """

    def __init__(self, now: float, patience: Mapping[int, float], most: float = float("inf")) -> None:
        self._pause, self._most = dict(patience), most
        self._at = {neighbour: now + pause for neighbour, pause in patience.items()}

    def due(self, whom: Iterable[int], now: float, growth: float = 2) -> list[int]:
        """Return those of some neighbours that it is time to ask, and take it that they are asked now."""
        due = [neighbour for neighbour in whom if now >= self._at[neighbour]]
        for neighbour in due:
            self._pause[neighbour] = min(growth * self._pause[neighbour], self._most)
            self._at[neighbour] = now + self._pause[neighbour]
        return due

    def delay(self, seconds: float) -> None:
        """Leave out a time in which this peer stood still."""
        self._at = {neighbour: at + seconds for neighbour, at in self._at.items()}


class Neighbourhood:
    """What a peer knows of its neighbours, and how it talks with them; ``round`` is the peer's own.

    ``transport`` listens already. ``patient``: a neighbour that is lost is waited for until it is back.
    """

    def __init__(
        self,
        place: Place,
        sizes: tuple[int, ...],
        ones: tuple[int, ...],
        coding: MaskCoding,
        transport: Transport,
        ledger: Ledger,
        stop: threading.Event,
    ) -> None:
        self.place, self._transport, self._ledger, self._stop = place, transport, ledger, stop
        self._experiment = experiment = place.run.experiment
        self.patient = experiment.mode == "sync" and experiment.deadline == "none"
        self.round = 0
        self._identity = identity(place.run, place.topology.digest) | {"layout": "+".join(map(str, sizes))}
        self.me = wire.Hello(wire.run_digest(self._identity), sizes, ones, place.advertise)
        # a neighbour that was killed goes on from its last checkpoint, and those in its round are one ahead of it
        keep = experiment.checkpoint_every + 2
        self._outgoing = Outgoing(self.me.digest, place.peer, coding, ones, keep)
        self._incoming, self._largest = Incoming(coding), coding.largest
        self._ahead = AHEAD + keep
        self._addresses = list(place.addresses)
        self._greeted: dict[int, wire.Hello] = {}
        self._routes: dict[int, Hashable] = {}
        self._met: set[tuple[int, Kind]] = set()
        self._differs: dict[int, str] = {}
        self._told: set[int] = set()
        self._awaited: dict[int, int] = {}
        self._gone: dict[int, int] = {}
        self._losses: Counter[int] = Counter()
        self._heard: dict[int, int] = {}
        self._claimed: dict[int, int] = {}
        self._arriving = True
        self._patience = dict.fromkeys(place.neighbours, ASK_SECONDS)
        self._inbox: dict[int, dict[int, BitMask]] = {}
        self._newest: dict[int, tuple[int, BitMask]] = {}
        self._once: dict[tuple[int, Kind], tuple[int, float]] = {}
        self._again_at: dict[int, float] = {}
        self._ungreeted: set[int] = set()
        self._spoken: set[int] = set()
        self._moved: dict[int, float] = {}
        self._moving: set[int] = set()
        self._to_follow: dict[int, tuple[str, Hashable]] = {}
        self._byes: dict[int, bool] = {}
        self._connected = self._leaving = False

    @property
    def sent(self) -> tuple[tuple[int, BitMask], ...]:
        """The masks that were sent last, with their rounds: neighbours may still need them."""
        return self._outgoing.kept

    def restore(self, sent: Iterable[tuple[int, BitMask]]) -> None:
        """Take back what was sent before a restart."""
        self._outgoing.restore(sent)

    # --- a round ----------------------------------------------------------------------------------------------------

    def send(self, mask: BitMask) -> None:
        """Send the round's mask to all neighbours."""
        self._greet_whom_it_reaches()
        acknowledge = {neighbour: self._holds(neighbour) for neighbour in self.place.neighbours}
        for neighbour, message in self._outgoing.messages(self.round, mask, acknowledge):
            self._send(neighbour, message, mask=True)

    def gather(self) -> Mapping[int, BitMask]:
        """Wait for the masks of a round from all who are there, up to the deadline.

        Whoever misses a deadline in ``sync`` mode is not waited for again until it is heard of.
        """
        round_, start, decoded = self.round, time.monotonic(), self._ledger.spent("decode")
        limit = self._experiment.deadline
        deadline = start + (float("inf") if limit == "none" else limit)
        asking = _Asking(start, self._patience, most=MOST_PATIENT_SECONDS)
        extra, over, before = 0, 0.0, set(self._awaited)
        while not self._stop.is_set():
            missing = self._missing(round_)
            now = time.monotonic()
            for neighbour in before - missing:
                if QUICK * (now - start) < self._patience[neighbour]:
                    self._patience[neighbour] = max(self._patience[neighbour] / 2, ASK_SECONDS)
            before = missing
            for neighbour in asking.due(missing, now):
                self._say(Kind.ASK, neighbour)
            # with nothing more to wait for, what is there already is taken in still: someone lost may have come back
            done = not missing or now >= deadline
            over = over or (now if done else 0.0)
            wait = 0.0 if done else min(deadline - now, TICK)
            slept = time.monotonic()
            delivery = self._transport.receive(wait)
            stood = time.monotonic() - slept - wait
            if stood > STOPPED_SECONDS:  # this process stood still, and its neighbours are not to blame
                start, deadline = start + stood, deadline + stood
                asking.delay(stood)
            self._take(delivery)
            extra += done
            if done and (delivery is None or extra == EXTRA or now >= over + EXTRA_SECONDS):
                for neighbour in self._missing(round_):
                    self._lose(neighbour)
                break
        self._ledger.waited(time.monotonic() - start - (self._ledger.spent("decode") - decoded))
        received = self._inbox.pop(round_, {})
        if self._experiment.mode != "async":
            return received
        oldest = round_ - self._experiment.staleness
        return {neighbour: mask for neighbour, (newest, mask) in self._newest.items() if newest >= oldest}

    def _missing(self, round_: int) -> set[int]:
        """Return the neighbours to wait for: those that are in this round or before it and whose mask is not here."""
        if self._experiment.mode == "async":
            return set()
        missing = {
            neighbour
            for neighbour, first in self._awaited.items()
            if first <= round_
            and neighbour not in self._inbox.get(round_, {})
            and (neighbour not in self._newest or self._newest[neighbour][0] < round_ + 2)  # else it skipped this one
        }
        return missing & self._transport.connected() if self._experiment.mode == "deadline" else missing

    def _lose(self, neighbour: int) -> None:
        if self._experiment.mode == "sync":
            del self._awaited[neighbour]
        if neighbour not in self._gone:
            self._miss("lost", neighbour)

    def _miss(self, what: Happening, neighbour: int) -> None:
        self._gone[neighbour] = self.round
        self._losses[neighbour] += 1
        self._ledger.notice(what, self.round, neighbour)

    def _is_trusted(self, neighbour: int) -> bool:
        """Return whether a neighbour is worth waiting for: each time that it was lost it has to wait longer itself."""
        losses = self._losses[neighbour]
        if self._experiment.mode != "sync":  # where nobody waits for it, it comes and goes once a round at most
            return losses < 2 or self.round > self._gone.get(neighbour, -1)
        probation = PROBATION * 2 ** (losses - 2) if losses > 1 else 0
        return self.round >= self._gone.get(neighbour, self.round) + probation

    def _await(self, neighbour: int, first: int) -> None:
        """Wait for a neighbour's masks, from the round ``first`` on."""
        self._awaited[neighbour] = first
        self._byes.pop(neighbour, None)
        if self._gone.pop(neighbour, None) is not None:
            self._ledger.notice("back", self.round, neighbour)

    def catch_up(self) -> None:
        """Skip rounds where the neighbours that are there have gone on without this peer, a bounded number at once.

        Who waits for this peer's mask is in its round or before. What counts is masks that were read, not words, and of
        the neighbours that are there the middle one: a liar cannot push further.
        """
        loose = self._experiment.mode == "async"
        if self.patient or not self._experiment.algorithm.exchange or (loose and not self._arriving):
            return
        # in async mode everybody has a pace of its own, once it has come to where the others were when it joined
        self._arriving = self._middle(self._claimed) > self.round + BEHIND
        evidence = {n: min(r, self._claimed.get(n, 0)) for n, r in self._heard.items()} if loose else self._heard
        ahead = min(self._middle(evidence) + 1, self._experiment.rounds - 1)
        if ahead > self.round + 1 + BEHIND:  # less is made up by playing: the others wait for who is late
            ahead = min(ahead, self.round + SKIP)
            self._ledger.notice("skipped", self.round, detail=f"to round {ahead}")
            self.round = ahead
            self._inbox = {round_: box for round_, box in self._inbox.items() if round_ >= ahead}

    def _middle(self, rounds: Mapping[int, int]) -> int:
        """Return the middle one of the rounds of the neighbours that are there; of whom nothing is known, its own."""
        there = [rounds.get(neighbour, self.round) for neighbour in self._transport.connected()]
        return median_low(there) if there else self.round

    # --- coming and going -------------------------------------------------------------------------------------------

    def join(self, *, resumed: bool) -> None:
        """Say hello to all neighbours until each has said it too, and welcomed this one.

        With both seen, no word from before the first round is under way any more. Whoever does not come within the
        time-out is an error in a new ``sync`` run; else the peer begins with those who are there. A peer that comes
        late waits a moment for the masks that show where the others are.
        """
        self._connect()
        patience = self.place.join_timeout
        if resumed and self._experiment.deadline != "none":
            patience = min(patience, self._experiment.deadline)
        deadline = time.monotonic() + (float("inf") if resumed and self.patient else patience)
        refused_until = float("inf")
        asking = _Asking(time.monotonic(), dict.fromkeys(self.place.neighbours, GREET_SECONDS), most=4 * GREET_SECONDS)
        while (missing := self._unmet()) and not self._stop.is_set():
            now = time.monotonic()
            there = missing & self._transport.connected()
            heard_of = {neighbour for neighbour, _ in self._met}
            # a hello, or its welcome, may have been lost; who has said nothing at all may only be slow to begin
            for neighbour in [*asking.due(there & heard_of, now, growth=1), *asking.due(there - heard_of, now)]:
                self._say_hello(neighbour)
            differs = self._counts_as_wrong(resumed)
            if differs:
                refused_until = min(refused_until, now + REFUSED_SECONDS)
            if differs and (now >= refused_until or missing <= self._differs.keys() & self._told):
                who, how = next(iter(self._differs.items()))
                raise WrongRunError(f"peer {who} belongs to another run: {how}; start both from the same topology file")
            if now >= deadline:
                if resumed or (len(missing) < len(self.place.neighbours) and self._experiment.mode != "sync"):
                    for neighbour in missing - self._awaited.keys():
                        self._miss("lost", neighbour)
                    return
                self._give_up(missing)
            self._take(self._transport.receive(min(deadline - now, TICK)))
        self._see_where_the_others_are()

    def _counts_as_wrong(self, resumed: bool) -> bool:
        """Return whether this peer is of another run than its neighbours, as far as they say so.

        Where it can begin without those who refuse it, and one has welcomed it, it is theirs that is another run.
        """
        welcomed = any(kind == Kind.WELCOME for _, kind in self._met)
        return bool(self._differs) and not (welcomed and (resumed or self._experiment.mode != "sync"))

    def _see_where_the_others_are(self) -> None:
        shown_by = time.monotonic() + GREET_SECONDS
        while self._is_late() and not self._stop.is_set() and (now := time.monotonic()) < shown_by:
            self._take(self._transport.receive(min(shown_by - now, TICK)))

    def _is_late(self) -> bool:
        """Return whether the neighbours say that they are far ahead, and their masks do not show it yet."""
        far = self.round + 1 + BEHIND
        return not self.patient and self._middle(self._claimed) > far >= self._middle(self._heard)

    def _connect(self) -> None:
        self._connected = True
        for neighbour in self.place.neighbours:
            self._transport.connect(neighbour, self._addresses[neighbour])

    def _give_up(self, missing: set[int]) -> None:
        refused = self._ledger.refused
        raise JoinError(
            f"peer {self.place.peer} waited {self.place.join_timeout:g} s for "
            + ", ".join(f"peer {other} at {self._addresses[other]}" for other in sorted(missing))
            + "; start them, mend their addresses, or raise --join-timeout"
            + (f" (refused so far: {', '.join(f'{why} {n}' for why, n in refused.items())})" if refused else "")
        )

    def _unmet(self) -> set[int]:
        return {n for n in self.place.neighbours if {(n, Kind.HELLO), (n, Kind.WELCOME)} - self._met}

    def leave(self) -> None:
        """Say bye, and stay until the neighbours did too: they may still need this peer's masks after a crash."""
        self._leaving, patience = True, LEAVE_SECONDS
        if self.patient:
            patience = float("inf") if self._met else self.place.join_timeout
        if not self._connected:  # there was nothing left to play after a restart
            self._awaited = dict.fromkeys(self.place.neighbours, self.round)
            self._connect()
        for neighbour in self.place.neighbours:
            self._say_bye(neighbour)
        now = time.monotonic()
        deadline, asking = (
            now + patience,
            _Asking(now, dict.fromkeys(self.place.neighbours, GREET_SECONDS), MOST_PATIENT_SECONDS),
        )
        while (there := self._still_there()) and not self._stop.is_set() and (now := time.monotonic()) < deadline:
            for neighbour in asking.due(there, now):  # a bye may have been lost, this peer's or theirs
                self._say_bye(neighbour)
            self._take(self._transport.receive(min(deadline - now, TICK)))

    def _still_there(self) -> set[int]:
        """Return the neighbours that have not said bye, and where all are patient those that wait for this peer's."""
        awaited, connected = set(self._awaited), self._transport.connected()
        if self.patient:
            return awaited - self._byes.keys() | {n for n, heard in self._byes.items() if not heard} & connected
        return awaited & connected if self._experiment.mode == "deadline" else awaited

    # --- messages ---------------------------------------------------------------------------------------------------

    def _send(self, neighbour: int, frames: wire.Frames, *, mask: bool = False) -> bool:
        handed_over = self._transport.send(neighbour, b"".join(frames))
        if handed_over:
            self._ledger.sent(neighbour, frames, mask=mask)
            self._spoken.add(neighbour)
        return handed_over

    def _holds(self, neighbour: int) -> int | None:
        """Return the round up to which a neighbour's masks are here, without those that came past a lost one."""
        held = self._incoming.held(neighbour)
        here = self._experiment.mode == "async" or neighbour in self._inbox.get(self.round, {})
        if held is None or held < self.round or here:
            return held
        return self.round - 1 if self.round else None

    def _say_hello(self, neighbour: int) -> None:
        held, sent = self._holds(neighbour), self._outgoing.newest
        said = self._send(neighbour, wire.hello(Kind.HELLO, self.me, self.place.peer, self.round, held, sent))
        (self._ungreeted.discard if said else self._ungreeted.add)(neighbour)

    def _say(self, kind: Kind, neighbour: int) -> None:
        """Ask a neighbour what it has sent, or tell it what it was sent."""
        held, sent = self._holds(neighbour), self._outgoing.newest
        self._send(neighbour, wire.word(kind, self.me.digest, self.place.peer, self.round, held, sent))

    def _say_lost(self, neighbour: int) -> None:
        """Ask for the masks that a neighbour sent and that did not come."""
        self._patience[neighbour] = ASK_SECONDS
        if self._lately(neighbour, Kind.LOST):
            return
        held, depth = self._holds(neighbour), self._incoming.depth(neighbour)
        if held != self._incoming.held(neighbour):
            depth = 0  # a later one came: its chain is of no use for those before
        self._send(neighbour, wire.lost(self.me.digest, self.place.peer, self.round, held, depth))

    def _lately(self, neighbour: int, what: Kind) -> bool:
        """Return whether something was done for a neighbour a moment ago; if not, it is done now.

        Masks that are lost are seen to in each round anew, hellos are not.
        """
        now = time.monotonic()
        round_, when = self._once.get((neighbour, what), (-1, float("-inf")))
        if now < when + AGAIN_SECONDS and (round_ == self.round or what == Kind.HELLO):
            return True
        self._once[neighbour, what] = self.round, now
        return False

    def _say_bye(self, neighbour: int) -> None:
        self._send(neighbour, wire.bye(self.me.digest, self.place.peer, self.round, heard=neighbour in self._byes))

    def _greet_whom_it_reaches(self) -> None:
        opened = self._transport.opened()
        for neighbour in self._ungreeted & self._transport.connected() - set(opened):  # its queue was full
            self._say_hello(neighbour)
        for neighbour in opened:
            self._say_hello(neighbour)
            if self._leaving:
                self._say_bye(neighbour)
            if neighbour in self._moving:
                self._moving.remove(neighbour)
                self._ledger.notice("moved", self.round, neighbour, detail=self._addresses[neighbour])

    def _take(self, delivery: Delivery | None) -> None:
        """Take in what arrived, or count why not."""
        self._greet_whom_it_reaches()
        self._follow_whom_it_put_off()
        if delivery is None:
            return
        try:
            with self._ledger.phase("decode"):
                frames = wire.split(delivery.message)
                header = wire.read_header(frames, self._largest)
                if header.sender not in self.place.neighbours:
                    raise Refused(Refusal.STRANGER)
                if self._transport.authenticated and delivery.speaker != header.sender:
                    raise Refused(Refusal.IMPOSTOR)
                self._accept(header, frames[1], delivery)
        except Refused as refused:
            self._ledger.refuse(refused.reason)
        else:
            self._ledger.received(header.sender, frames, mask=header.kind == Kind.MASK)

    def _accept(self, header: wire.Header, payload: bytes, delivery: Delivery) -> None:
        sender = header.sender
        from_its_address = delivery.answer_of == sender
        match header.kind:
            case Kind.HELLO if delivery.answer_of is None:
                self._accept_hello(header, payload, delivery)
            case Kind.WELCOME if from_its_address:
                self._greet(header, payload)
            case Kind.REFUSED if from_its_address:
                self._differs[sender] = wire.differences(self._identity, wire.read_refusal(payload))
            case Kind.HELLO | Kind.WELCOME | Kind.REFUSED:
                raise Refused(Refusal.STRANGER)
            case _ if sender not in self._routes or self._routes[sender] != delivery.route:
                if delivery.answer_of is None and self._connected and not self._lately(sender, Kind.HELLO):
                    self._say_hello(sender)  # its own was lost; it greets who says hello twice
                raise Refused(Refusal.NO_HELLO)  # each connection says hello first
            case _ if header.tag != wire.tag(self.me.digest):
                raise Refused(Refusal.WRONG_RUN)
            case _:
                self._accept_word(header, payload)

    def _accept_word(self, header: wire.Header, payload: bytes) -> None:
        """Take in what a neighbour says after its hello."""
        match header.kind:
            case Kind.MASK:
                self._accept_mask(header, payload)
            case Kind.BYE:
                self._accept_bye(header)
            case Kind.ASK:
                self._say(Kind.TELL, header.sender)
                self._look_for_losses(header)
            case Kind.TELL:
                self._look_for_losses(header)
            case Kind.LOST:
                self._send_again(header)

    def _accept_hello(self, header: wire.Header, payload: bytes, delivery: Delivery) -> None:
        sender = header.sender
        try:
            self._greet(header, payload)
        except Refused as refused:
            if refused.reason is Refusal.WRONG_RUN:
                settings = wire.refusal(self.me.digest, self.place.peer, self.round, self._identity)
                if self._transport.answer(delivery.route, b"".join(settings)):
                    self._ledger.sent(sender, settings)
                self._told.add(sender)
            raise
        again = self._routes.get(sender) == delivery.route
        self._routes[sender] = delivery.route
        self._transport.identify(delivery.route, sender)
        self._follow(sender, self._greeted[sender].address, delivery.route)
        # whoever is further behind skips rounds, and says by its first mask which is the next that it plays
        near = header.round >= self.round - BEHIND or self._experiment.mode == "async"
        if sender not in self._awaited and (self.patient or (near and self._is_trusted(sender))):
            self._await(sender, self.round if self.patient else self.round + bool(self.round))
        self._outgoing.holds(sender, header.acknowledged)
        welcome = wire.hello(Kind.WELCOME, self.me, self.place.peer, self.round, self._holds(sender))
        if self._transport.answer(delivery.route, b"".join(welcome)):
            self._ledger.sent(sender, welcome)
        newest = self._outgoing.newest
        if newest is not None and (header.acknowledged is None or header.acknowledged < newest):
            self._say(Kind.TELL, sender)
        self._look_for_losses(header)
        if again and not self._lately(sender, Kind.HELLO):  # it lacks something: this peer's hello may be lost
            self._say_hello(sender)
        if self._leaving:
            self._say_bye(sender)

    def _greet(self, header: wire.Header, payload: bytes) -> None:
        """Take a hello or a welcome in; Refused where it is of another run or not what its sender said before."""
        sender, hello = header.sender, wire.read_hello(payload)
        if hello.digest != self.me.digest or hello.sizes != self.me.sizes:
            raise Refused(Refusal.WRONG_RUN)
        if sender in self._greeted and self._greeted[sender].ones != hello.ones:
            raise Refused(Refusal.WRONG_DENSITY)  # a device keeps its density within a run
        self._greeted[sender] = hello
        self._met.add((sender, Kind(header.kind)))
        self._claimed[sender] = max(self._claimed.get(sender, 0), header.round)  # what was queued for long comes late

    def _accept_bye(self, header: wire.Header) -> None:
        sender, heard = header.sender, header.held > 0
        self._transport.link_bytes()  # read while they are there: who leaves takes its counters along
        self._byes[sender] = heard or self._byes.get(sender, False)
        if self.patient:  # it stays until this peer is done too: what it sent last may have to come again
            if self._leaving and not heard:
                self._say_bye(sender)
        elif self._awaited.pop(sender, None) is not None and header.round < self._experiment.rounds:
            self._miss("left", sender)

    def _follow(self, neighbour: int, address: str, route: Hashable) -> None:
        """Connect to a neighbour that listens elsewhere than it did, or again where the topology says (no address).

        Refused where that cannot be: whoever speaks in a neighbour's name must not have a peer connect to anything.
        """
        address = address or self.place.addresses[neighbour]
        now = time.monotonic()
        if address == self._addresses[neighbour]:
            return
        if now < self._moved.get(neighbour, float("-inf")) + MOVE_SECONDS:
            self._to_follow[neighbour] = address, route
            return
        if not self._transport.authenticated:  # else only the owner of its key is believed, there too
            hosts = {
                self._transport.host_of(route),
                *map(host, (self._addresses[neighbour], self.place.addresses[neighbour])),
            }
            if host(address) not in hosts:
                raise Refused(Refusal.WRONG_ADDRESS)
        try:
            self._transport.connect(neighbour, address)
        except AddressError:
            raise Refused(Refusal.WRONG_ADDRESS) from None
        self._addresses[neighbour], self._moved[neighbour] = address, now
        self._moving.add(neighbour)

    def _follow_whom_it_put_off(self) -> None:
        for neighbour, (address, route) in list(self._to_follow.items()):
            if time.monotonic() >= self._moved[neighbour] + MOVE_SECONDS:
                del self._to_follow[neighbour]
                with suppress(Refused):
                    self._follow(neighbour, address, route)

    def _look_for_losses(self, header: wire.Header) -> None:
        """Ask for what a neighbour says that it has sent, and that is not here: it would have come before the word."""
        sender, held = header.sender, self._holds(header.sender)
        if header.sent is not None and (held is None or held < header.sent):
            self._say_lost(sender)
        elif header.kind == Kind.TELL:
            self._patience[sender] = min(2 * self._patience[sender], MOST_PATIENT_SECONDS)

    def _send_again(self, header: wire.Header) -> None:
        """Send the masks again that a neighbour lost, once for each time that it may have heard of them."""
        sender, began = header.sender, time.monotonic()
        if sender not in self._spoken or began < self._again_at.get(sender, 0.0) or self._lately(sender, Kind.MASK):
            return
        held = self._holds(sender)
        for frames in self._outgoing.again(sender, header.round, header.acknowledged, header.depth, held):
            self._send(sender, frames, mask=True)
        self._spoken.discard(sender)
        self._again_at[sender] = time.monotonic() + (time.monotonic() - began) / AGAIN_SHARE

    def _accept_mask(self, header: wire.Header, payload: bytes) -> None:
        sender, loose = header.sender, self._experiment.mode == "async"
        try:
            mask = self._incoming.read(header, payload, self._greeted[sender])
        except Refused as refused:
            if refused.reason in (Refusal.UNKNOWN_BASE, Refusal.CORRUPT):
                self._say_lost(sender)
            raise
        self._heard[sender] = max(self._heard.get(sender, 0), header.round)
        newer = sender not in self._newest or self._newest[sender][0] < header.round
        if newer:
            self._newest[sender] = header.round, mask
        if header.round > self.round + self._ahead and not loose:
            self._met.add((sender, Kind.WELCOME))  # long past its first round: a welcome that is not here yet is lost
            raise Refused(Refusal.FUTURE)
        if not loose:
            self._put(sender, header.round, mask)
        elif not newer:
            raise Refused(Refusal.DUPLICATE)

    def _put(self, sender: int, round_: int, mask: BitMask) -> None:
        """Put a mask into the box of its round."""
        if round_ < self.round:  # too late, but the next one may build on it
            if sender in self._gone and self._is_trusted(sender):
                self._await(sender, self.round + 1)  # it is there, and never again in time unless it is waited for
            raise Refused(Refusal.STALE)
        box = self._inbox.setdefault(round_, {})
        if sender in box:
            raise Refused(Refusal.DUPLICATE)
        box[sender] = mask
        if (sender not in self._awaited or sender in self._gone) and self._is_trusted(sender):
            self._await(sender, round_)


def host(address: str) -> str:
    """Return the host of an address such as ``tcp://127.0.0.1:47100``."""
    name = address.partition("://")[2].rpartition(":")[0]
    return "127.0.0.1" if name == "localhost" else name
