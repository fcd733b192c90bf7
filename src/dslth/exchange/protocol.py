"""What a peer says to its neighbours, and when: events in, actions out; no socket, no thread, no clock of its own.

A peer is in one phase at a time. What it wants begins a phase (``join``, ``gather``, ``leave``), what happens moves it
on (``connections``, ``deliver``, ``tick``), and ``busy`` tells until when. Each call may add to ``actions``, which
whoever runs the exchange carries out. While a peer learns, between two phases, nothing happens to it.

::

    join()    JOINING    hello until every neighbour has said it too and welcomed this peer, or the time-out
              LOOKING    a peer that comes late waits a moment for masks that show where the others are
    gather()  GATHERING  the round's masks, until all who are there have sent theirs, or the deadline
    leave()   LEAVING    bye until the neighbours have said it too, for a while

Nothing that a neighbour does, or fails to do, holds a peer longer than the round's deadline; nothing that arrives
changes it but a mask that passed every check of ``wire``.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Generic

from dslth import wire
from dslth.config import RunConfig
from dslth.errors import JoinError, WrongRunError
from dslth.exchange.actions import Action, Answer, Connect, CountLinks, Identify, Notice, Refuse, Send, Took
from dslth.exchange.modes import BEHIND, middle, mode_of
from dslth.exchange.neighbour import Neighbour, State
from dslth.exchange.streams import C, Coding, Incoming, M, Outgoing
from dslth.run.events import Happening
from dslth.topology import Topology
from dslth.transport.base import Delivery
from dslth.wire import Frames, Header, Hello, Kind, Refusal, Refused

__all__ = ["Exchange", "Phase", "Place"]

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
SKIP = 16
"""Rounds that a peer skips at once, at most: a neighbour that lies about the round costs no more than that."""
EXTRA, EXTRA_SECONDS = 256, 0.5
"""Messages that a peer takes in at most once a round is over, and for how long, so that a flood does not hold it."""
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


class Phase(Enum):
    """What a peer waits for."""

    NOTHING = "nothing"
    JOINING = "joining"
    LOOKING = "looking"
    GATHERING = "gathering"
    LEAVING = "leaving"


class Exchange(Generic[M, C]):
    """One peer's side of the exchange. ``round`` is the one that the peer is in; ``me`` is what it says of itself.

    ``identity`` are the settings that all peers of a run share. ``clock`` tells seconds that never go back.
    ``authenticated``: every delivery's speaker is proven; elsewhere ``host_of`` returns the host of a route.
    """

    def __init__(
        self,
        place: Place,
        me: Hello,
        identity: Mapping[str, str],
        coding: Coding[M, C],
        clock: Callable[[], float],
        *,
        authenticated: bool = False,
        host_of: Callable[[Hashable], str | None] = lambda route: None,
    ) -> None:
        experiment = place.run.experiment
        self.me, self.round = me, 0
        self.received: Mapping[int, M] = {}
        """The masks that the last round ended with, by neighbour."""
        self._place, self._identity, self._clock = place, identity, clock
        self._authenticated, self._host_of = authenticated, host_of
        self._rounds, self._largest = experiment.rounds, coding.largest
        self._mode = mode_of(experiment)
        # a neighbour that was killed goes on from its last checkpoint, and those in its round are one ahead of it
        keep = experiment.checkpoint_every + 2
        self._ahead = AHEAD + keep
        self._outgoing = Outgoing(me.digest, place.peer, coding, me.ones, keep)
        self._incoming = Incoming(coding)
        homes = {neighbour: place.addresses[neighbour] for neighbour in place.neighbours}
        self._neighbours = {n: Neighbour[M](n, home, home, patience=ASK_SECONDS) for n, home in homes.items()}
        self._all = tuple(self._neighbours.values())
        self._connected: frozenset[int] = frozenset()
        self._has_connected = self._leaves = self._resumed = False
        self._phase = Phase.NOTHING
        self._began = self._until = self._wake = 0.0
        self._over: float | None = None
        self._extra = 0
        self._missing: Sequence[Neighbour[M]] = ()
        self._refused_until = float("inf")
        self._actions: list[Action] = []

    @property
    def patient(self) -> bool:
        """Whether a neighbour that is lost is waited for until it is back."""
        return self._mode.patient

    @property
    def busy(self) -> bool:
        """Whether what was begun last is not over."""
        return self._phase is not Phase.NOTHING

    @property
    def wake(self) -> float:
        """The time at which a tick is due, at the latest, while it is busy."""
        return self._wake

    def actions(self) -> list[Action]:
        """Return what is to be done, in this order, since the last call."""
        actions, self._actions = self._actions, []
        return actions

    @property
    def sent(self) -> tuple[tuple[int, M], ...]:
        """The masks that were sent last, with their rounds: neighbours may still need them."""
        return self._outgoing.kept

    def restore(self, round_: int, sent: Iterable[tuple[int, M]]) -> None:
        """Go on in a round, with what was sent before a restart."""
        self.round = round_
        self._outgoing.restore(sent)

    def end_round(self) -> None:
        """Go on to the next round."""
        self.round += 1

    def _begin(self, phase: Phase, until: float) -> None:
        self._phase, self._began, self._until = phase, self._clock(), until
        self._wake = self._began

    # --- what the peer wants ----------------------------------------------------------------------------------------

    def join(self, *, resumed: bool) -> None:
        """Begin to say hello to all neighbours until each has said it too, and welcomed this one.

        With both seen, no word from before the first round is under way any more. Whoever does not come within the
        time-out is an error in a new ``sync`` run; else the peer begins with those who are there.
        """
        self._connect()
        patience = min(self._place.join_timeout, self._mode.deadline) if resumed else self._place.join_timeout
        now, self._resumed = self._clock(), resumed
        self._begin(Phase.JOINING, now + (float("inf") if resumed and self.patient else patience))
        for neighbour in self._all:
            neighbour.asking.start(now, GREET_SECONDS)

    def send(self, mask: M) -> None:
        """Send the round's mask to all neighbours."""
        held = {neighbour.id: self._holds(neighbour) for neighbour in self._all}
        for neighbour, frames in self._outgoing.messages(self.round, mask, held):
            self._say(self._neighbours[neighbour], Kind.MASK, frames)

    def gather(self) -> None:
        """Begin to wait for the masks of the round from all who are there, up to the deadline.

        Whoever misses a deadline in ``sync`` mode is not waited for again until it is heard of.
        """
        now = self._clock()
        self._begin(Phase.GATHERING, now + self._mode.deadline)
        self._over, self._extra = None, 0
        self._missing = self._mode.missing(self._all, self.round, self._connected)
        for neighbour in self._all:
            neighbour.asking.start(now, neighbour.patience)

    def catch_up(self) -> None:
        """Skip rounds where the neighbours that are there have gone on without this peer, a bounded number at once.

        Who waits for this peer's mask is in its round or before. What counts is masks that were read, not words, and of
        the neighbours that are there the middle one: a liar cannot push further.
        """
        ahead = min(self._mode.shown(self._there(), self.round) + 1, self._rounds - 1)
        if ahead > self.round + 1 + BEHIND:  # less is made up by playing: the others wait for who is late
            ahead = min(ahead, self.round + SKIP)
            self._notice("skipped", detail=f"to round {ahead}")
            self.round = ahead
            for neighbour in self._all:
                neighbour.forget_masks_before(ahead)

    def leave(self) -> None:
        """Begin to say bye, and to stay until the neighbours did too: they may still need this peer's masks."""
        self._leaves, patience = True, LEAVE_SECONDS
        if self.patient:
            patience = float("inf") if any(neighbour.met for neighbour in self._all) else self._place.join_timeout
        if not self._has_connected:  # there was nothing left to play after a restart
            for neighbour in self._all:
                neighbour.state, neighbour.first = State.AWAITED, self.round
            self._connect()
        now = self._clock()
        self._begin(Phase.LEAVING, now + patience)
        for neighbour in self._all:
            self._say_bye(neighbour)
            neighbour.asking.start(now, GREET_SECONDS)

    def _connect(self) -> None:
        self._has_connected = True
        self._actions += [Connect(neighbour.id, neighbour.address) for neighbour in self._all]

    # --- what happens -----------------------------------------------------------------------------------------------

    def connections(self, connected: frozenset[int], opened: Sequence[int]) -> None:
        """Learn which neighbours this peer's connections reach, and to whom one was opened since the last call."""
        self._connected = connected
        for neighbour in self._all:
            if neighbour.ungreeted and neighbour.id in connected and neighbour.id not in opened:  # its queue was full
                self._say_hello(neighbour)
        for neighbour in map(self._neighbours.__getitem__, opened):
            self._say_hello(neighbour)
            if self._leaves:
                self._say_bye(neighbour)
            if neighbour.moving:
                neighbour.moving = False
                self._notice("moved", neighbour, detail=neighbour.address)

    def deliver(self, delivery: Delivery) -> None:
        """Take in what arrived, or count why not."""
        try:
            frames = wire.split(delivery.message)
            header = wire.read_header(frames, self._largest)
            neighbour = self._neighbours.get(header.sender)
            if neighbour is None:
                raise Refused(Refusal.STRANGER)
            if self._authenticated and delivery.speaker != header.sender:
                raise Refused(Refusal.IMPOSTOR)
            self._accept(neighbour, header, frames[1], delivery)
        except Refused as refused:
            self._actions.append(Refuse(refused.reason))
        else:
            self._actions.append(Took(header.sender, Kind(header.kind), frames))

    def tick(self, *, idle: bool) -> None:
        """Do what it is time for. ``idle``: nothing more is there to be delivered now.

        Raises WrongRunError and JoinError while the peer joins.
        """
        now = self._clock()
        for neighbour in self._all:
            if neighbour.to_follow and now >= neighbour.moved_at + MOVE_SECONDS:
                (address, route), neighbour.to_follow = neighbour.to_follow, None
                with suppress(Refused):
                    self._follow(neighbour, address, route)
        if self._phase is Phase.JOINING:
            self._go_on_joining(now)
        if self._phase is Phase.LOOKING and (now >= self._until or not self._is_late()):
            self._phase = Phase.NOTHING
        if self._phase is Phase.GATHERING:
            self._go_on_gathering(now, idle=idle)
        if self._phase is Phase.LEAVING:
            self._go_on_leaving(now)

    def stood(self, seconds: float) -> None:
        """Learn that this process stood still while it waited: its neighbours are not to blame."""
        if self._phase is Phase.GATHERING:
            self._began, self._until = self._began + seconds, self._until + seconds
            for neighbour in self._all:
                neighbour.asking.at += seconds

    def unsent(self, action: Send) -> None:
        """Learn that a message could not be handed over: nobody is connected there, or its queue is full."""
        if action.kind is Kind.HELLO:
            self._neighbours[action.neighbour].ungreeted = True
        elif action.kind is Kind.BYE:
            self._neighbours[action.neighbour].confirmed_bye = False

    def unreachable(self, action: Connect) -> None:
        """Learn that no neighbour can be where one said that it has moved to."""
        neighbour = self._neighbours[action.neighbour]
        neighbour.address, neighbour.moving = action.before, False
        self._actions.append(Refuse(Refusal.WRONG_ADDRESS))

    # --- joining ----------------------------------------------------------------------------------------------------

    def _go_on_joining(self, now: float) -> None:
        missing = [neighbour for neighbour in self._all if not neighbour.is_met]
        if not missing:
            self._begin(Phase.LOOKING, now + GREET_SECONDS)
            self._wake = self._until
            return
        there = [neighbour for neighbour in missing if neighbour.id in self._connected]
        for neighbour in there:
            # a hello, or its welcome, may have been lost; who has said nothing at all may only be slow to begin
            if neighbour.asking.due(now, 1 if neighbour.met else 2, 4 * GREET_SECONDS):
                self._say_hello(neighbour)
        self._check_run(missing, now)
        if now >= self._until:
            self._begin_without(missing)
        self._wake = min([self._until, self._refused_until, *(neighbour.asking.at for neighbour in there)])

    def _check_run(self, missing: Sequence[Neighbour[M]], now: float) -> None:
        """Raise WrongRunError where this peer is of another run than its neighbours, as far as they say so.

        Where it can begin without those who refuse it, and one has welcomed it, it is theirs that is another run.
        """
        refusing = [neighbour for neighbour in self._all if neighbour.differs]
        welcomed = any(Kind.WELCOME in neighbour.met for neighbour in self._all)
        if not refusing or (welcomed and (self._resumed or self._mode.begins_alone)):
            return
        self._refused_until = min(self._refused_until, now + REFUSED_SECONDS)
        if now >= self._refused_until or all(n.differs and n.refused for n in missing):
            self._phase = Phase.NOTHING
            raise WrongRunError(
                f"peer {refusing[0].id} belongs to another run: {refusing[0].differs}; "
                "start both from the same topology file"
            )

    def _begin_without(self, missing: Sequence[Neighbour[M]]) -> None:
        self._phase = Phase.NOTHING
        if not self._resumed and (len(missing) == len(self._all) or not self._mode.begins_alone):
            raise JoinError(
                f"peer {self._place.peer} waited {self._place.join_timeout:g} s for "
                + ", ".join(f"peer {neighbour.id} at {neighbour.address}" for neighbour in missing)
                + "; start them, mend their addresses, or raise --join-timeout"
            )
        for neighbour in missing:
            if neighbour.state is not State.AWAITED:
                self._miss("lost", neighbour)

    def _is_late(self) -> bool:
        """Return whether the neighbours say that they are far ahead, and their masks do not show it yet."""
        far, there = self.round + 1 + BEHIND, self._there()
        says, shows = (middle(rounds, self.round) for rounds in ([n.claimed for n in there], [n.heard for n in there]))
        return not self.patient and says > far >= shows

    # --- gathering --------------------------------------------------------------------------------------------------

    def _go_on_gathering(self, now: float, *, idle: bool) -> None:
        missing = self._mode.missing(self._all, self.round, self._connected)
        for neighbour in set(self._missing).difference(missing):
            if QUICK * (now - self._began) < neighbour.patience:
                neighbour.patience = max(neighbour.patience / 2, ASK_SECONDS)
        self._missing = missing
        for neighbour in missing:
            if neighbour.asking.due(now, 2, MOST_PATIENT_SECONDS):
                self._say_word(Kind.ASK, neighbour)
        if missing and now < self._until:
            self._wake = min([self._until, *(neighbour.asking.at for neighbour in missing)])
            return
        # with nothing more to wait for, what is there already is taken in still: someone lost may have come back
        self._wake, self._extra = now, self._extra + 1
        self._over = now if self._over is None else self._over
        if idle or self._extra > EXTRA or now >= self._over + EXTRA_SECONDS:
            self._end_gathering()

    def _end_gathering(self) -> None:
        for neighbour in self._missing:
            self._mode.lose(neighbour)
            if neighbour.missed_in is None:
                self._miss("lost", neighbour)
        self.received = self._mode.received(self._all, self.round)
        for neighbour in self._all:
            neighbour.forget_masks_before(self.round + 1)
        self._phase = Phase.NOTHING

    def _miss(self, what: Happening, neighbour: Neighbour[M]) -> None:
        neighbour.missed_in = self.round
        neighbour.losses += 1
        if neighbour.state is State.ABSENT:
            neighbour.state = State.LOST
        self._notice(what, neighbour)

    def _await(self, neighbour: Neighbour[M], first: int) -> None:
        """Wait for a neighbour's masks, from the round ``first`` on."""
        neighbour.state, neighbour.first = State.AWAITED, first
        neighbour.said_bye = neighbour.heard_bye = False
        if neighbour.missed_in is not None:
            neighbour.missed_in = None
            self._notice("back", neighbour)

    def _there(self) -> Sequence[Neighbour[M]]:
        return [neighbour for neighbour in self._all if neighbour.id in self._connected]

    # --- leaving ----------------------------------------------------------------------------------------------------

    def _go_on_leaving(self, now: float) -> None:
        perhaps_back = {neighbour.id for neighbour in self._all if now < neighbour.back_by}
        there = self._mode.stays_for(self._all, self._connected | perhaps_back)
        if not there or now >= self._until:
            self._phase = Phase.NOTHING
            return
        for neighbour in there:
            if neighbour.asking.due(now, 2, MOST_PATIENT_SECONDS):  # a bye may have been lost, this peer's or theirs
                self._say_bye(neighbour)
        given_up_at = [neighbour.back_by for neighbour in there if neighbour.back_by > now]
        self._wake = min([self._until, *(neighbour.asking.at for neighbour in there), *given_up_at])

    # --- saying -----------------------------------------------------------------------------------------------------

    def _notice(self, what: Happening, neighbour: Neighbour[M] | None = None, detail: str = "") -> None:
        self._actions.append(Notice(what, self.round, neighbour.id if neighbour else None, detail))

    def _say(self, neighbour: Neighbour[M], kind: Kind, frames: Frames) -> None:
        if neighbour.id in self._connected:
            self._actions.append(Send(neighbour.id, kind, frames))
            neighbour.spoken_to = True

    def _holds(self, neighbour: Neighbour[M]) -> int | None:
        """Return the round up to which a neighbour's masks are here, without those that came past a lost one."""
        held = self._incoming.held(neighbour.id)
        skipped = not self.patient and neighbour.has_skipped(self.round)
        if held is None or held < self.round or not self._mode.in_step or self.round in neighbour.masks or skipped:
            return held
        return self.round - 1 if self.round else None

    def _say_hello(self, neighbour: Neighbour[M]) -> None:
        held, sent = self._holds(neighbour), self._outgoing.newest
        neighbour.ungreeted = neighbour.id not in self._connected
        self._say(neighbour, Kind.HELLO, wire.hello(Kind.HELLO, self.me, self._place.peer, self.round, held, sent))

    def _say_word(self, kind: Kind, neighbour: Neighbour[M]) -> None:
        """Ask a neighbour what it has sent, or tell it what it was sent."""
        held, sent = self._holds(neighbour), self._outgoing.newest
        self._say(neighbour, kind, wire.word(kind, self.me.digest, self._place.peer, self.round, held, sent))

    def _say_lost(self, neighbour: Neighbour[M]) -> None:
        """Ask for the masks that a neighbour sent and that did not come."""
        neighbour.patience = ASK_SECONDS
        if self._lately(neighbour, Kind.LOST):
            return
        held, depth = self._holds(neighbour), self._incoming.depth(neighbour.id)
        if held != self._incoming.held(neighbour.id):
            depth = 0  # a later one came: its chain is of no use for those before
        self._say(neighbour, Kind.LOST, wire.lost(self.me.digest, self._place.peer, self.round, held, depth))

    def _lately(self, neighbour: Neighbour[M], what: Kind) -> bool:
        """Return whether something was done for a neighbour a moment ago; if not, it is done now.

        Masks that are lost are seen to in each round anew, hellos are not.
        """
        now = self._clock()
        round_, when = neighbour.lately.get(what, (-1, float("-inf")))
        if now < when + AGAIN_SECONDS and (round_ == self.round or what == Kind.HELLO):
            return True
        neighbour.lately[what] = self.round, now
        return False

    def _say_bye(self, neighbour: Neighbour[M]) -> None:
        frames = wire.bye(self.me.digest, self._place.peer, self.round, heard=neighbour.said_bye)
        neighbour.confirmed_bye = neighbour.said_bye and neighbour.id in self._connected
        self._say(neighbour, Kind.BYE, frames)

    # --- taking in --------------------------------------------------------------------------------------------------

    def _accept(self, neighbour: Neighbour[M], header: Header, payload: bytes, delivery: Delivery) -> None:
        from_its_address = delivery.answer_of == neighbour.id
        match header.kind:
            case Kind.HELLO if delivery.answer_of is None:
                self._accept_hello(neighbour, header, payload, delivery)
            case Kind.WELCOME if from_its_address:
                self._greet(neighbour, header, payload)
            case Kind.REFUSED if from_its_address:
                neighbour.differs = wire.differences(self._identity, wire.read_refusal(payload))
            case Kind.HELLO | Kind.WELCOME | Kind.REFUSED:
                raise Refused(Refusal.STRANGER)
            case _ if neighbour.route is None or neighbour.route != delivery.route:
                if delivery.answer_of is None and self._has_connected and not self._lately(neighbour, Kind.HELLO):
                    self._say_hello(neighbour)  # its own was lost; it greets who says hello twice
                raise Refused(Refusal.NO_HELLO)  # each connection says hello first
            case _ if header.tag != wire.tag(self.me.digest):
                raise Refused(Refusal.WRONG_RUN)
            case _:
                self._accept_word(neighbour, header, payload)

    def _accept_word(self, neighbour: Neighbour[M], header: Header, payload: bytes) -> None:
        """Take in what a neighbour says after its hello."""
        match header.kind:
            case Kind.MASK:
                self._accept_mask(neighbour, header, payload)
            case Kind.BYE:
                self._accept_bye(neighbour, header)
            case Kind.ASK:
                self._say_word(Kind.TELL, neighbour)
                self._look_for_losses(neighbour, header)
            case Kind.TELL:
                self._look_for_losses(neighbour, header)
            case Kind.LOST:
                self._send_again(neighbour, header)

    def _accept_hello(self, neighbour: Neighbour[M], header: Header, payload: bytes, delivery: Delivery) -> None:
        try:
            hello = self._greet(neighbour, header, payload)
        except Refused as refused:
            if refused.reason is Refusal.WRONG_RUN:
                settings = wire.refusal(self.me.digest, self._place.peer, self.round, self._identity)
                self._actions.append(Answer(neighbour.id, delivery.route, settings))
                neighbour.refused = True
            raise
        again = neighbour.route == delivery.route
        neighbour.route = delivery.route
        self._actions.append(Identify(neighbour.id, delivery.route))
        self._follow(neighbour, hello.address, delivery.route)
        first = self._mode.awaited_from(neighbour, header.round, self.round)
        if neighbour.state is not State.AWAITED and first is not None:
            self._await(neighbour, first)
        self._outgoing.holds(neighbour.id, header.acknowledged)
        welcome = wire.hello(Kind.WELCOME, self.me, self._place.peer, self.round, self._holds(neighbour))
        self._actions.append(Answer(neighbour.id, delivery.route, welcome))
        newest = self._outgoing.newest
        if newest is not None and (header.acknowledged is None or header.acknowledged < newest):
            self._say_word(Kind.TELL, neighbour)
        self._look_for_losses(neighbour, header)
        if again and not self._lately(neighbour, Kind.HELLO):  # it lacks something: this peer's hello may be lost
            self._say_hello(neighbour)
        if self._leaves:
            self._say_bye(neighbour)

    def _greet(self, neighbour: Neighbour[M], header: Header, payload: bytes) -> Hello:
        """Take a hello or a welcome in; Refused where it is of another run or not what its sender said before."""
        hello = wire.read_hello(payload)
        if hello.digest != self.me.digest or hello.sizes != self.me.sizes:
            raise Refused(Refusal.WRONG_RUN)
        if neighbour.hello and neighbour.hello.ones != hello.ones:
            raise Refused(Refusal.WRONG_DENSITY)  # a device keeps its density within a run
        neighbour.hello = hello
        neighbour.met.add(Kind(header.kind))
        neighbour.claimed = max(neighbour.claimed or 0, header.round)  # what was queued for long comes late
        return hello

    def _accept_bye(self, neighbour: Neighbour[M], header: Header) -> None:
        heard = header.held > 0
        self._actions.append(CountLinks())
        heard_before, neighbour.heard_bye = neighbour.heard_bye, heard or neighbour.heard_bye
        neighbour.said_bye, neighbour.back_by = True, self._clock() + self._place.join_timeout
        if self.patient:  # it stays until this peer is done too: what it sent last may have to come again
            # who says again that it has heard this peer's does not know that its own was heard
            again = heard_before and not self._lately(neighbour, Kind.BYE)
            if self._leaves and (not heard or not neighbour.confirmed_bye or again):
                self._say_bye(neighbour)
        elif neighbour.state is State.AWAITED:
            neighbour.state = State.LEFT
            if header.round < self._rounds:
                self._miss("left", neighbour)

    def _follow(self, neighbour: Neighbour[M], address: str, route: Hashable) -> None:
        """Connect to a neighbour that listens elsewhere than it did, or again where the topology says (no address).

        Refused where that cannot be: whoever speaks in a neighbour's name must not have a peer connect to anything.
        """
        address, now = address or neighbour.home, self._clock()
        if address == neighbour.address:
            return
        if now < neighbour.moved_at + MOVE_SECONDS:
            neighbour.to_follow = address, route
            return
        if not self._authenticated:  # else only the owner of its key is believed, there too
            hosts = {self._host_of(route), host(neighbour.address), host(neighbour.home)}
            if host(address) not in hosts:
                raise Refused(Refusal.WRONG_ADDRESS)
        self._actions.append(Connect(neighbour.id, address, neighbour.address))
        neighbour.address, neighbour.moved_at, neighbour.moving = address, now, True

    def _look_for_losses(self, neighbour: Neighbour[M], header: Header) -> None:
        """Ask for what a neighbour says that it has sent, and that is not here: it would have come before the word."""
        held = self._holds(neighbour)
        if header.sent is not None and (held is None or held < header.sent):
            self._say_lost(neighbour)
        elif header.kind == Kind.TELL:
            neighbour.patience = min(2 * neighbour.patience, MOST_PATIENT_SECONDS)

    def _send_again(self, neighbour: Neighbour[M], header: Header) -> None:
        """Send the masks again that a neighbour lost, once for each time that it may have heard of them."""
        began = self._clock()
        if not neighbour.spoken_to or began < neighbour.again_at or self._lately(neighbour, Kind.MASK):
            return
        held = self._holds(neighbour)
        for frames in self._outgoing.again(neighbour.id, header.round, header.acknowledged, header.depth, held):
            self._say(neighbour, Kind.MASK, frames)
        neighbour.spoken_to = False
        neighbour.again_at = self._clock() + (self._clock() - began) / AGAIN_SHARE

    def _accept_mask(self, neighbour: Neighbour[M], header: Header, payload: bytes) -> None:
        if neighbour.hello is None:
            raise Refused(Refusal.NO_HELLO)
        try:
            mask = self._incoming.read(header, payload, neighbour.hello)
        except Refused as refused:
            if refused.reason in (Refusal.UNKNOWN_BASE, Refusal.CORRUPT):
                self._say_lost(neighbour)
            raise
        newer = neighbour.newest is None or neighbour.newest[0] < header.round
        if newer:
            neighbour.newest = header.round, mask
        if not self._mode.in_step:
            if not newer:
                raise Refused(Refusal.DUPLICATE)
        elif header.round > self.round + self._ahead:
            neighbour.met.add(Kind.WELCOME)  # long past its first round: a welcome that is not here yet is lost
            raise Refused(Refusal.FUTURE)
        else:
            self._put(neighbour, header.round, mask)

    def _put(self, neighbour: Neighbour[M], round_: int, mask: M) -> None:
        """Put a mask into the box of its round."""
        trusted, gone = self._mode.trusts(neighbour, self.round), neighbour.missed_in is not None
        if round_ < self.round:  # too late, but the next one may build on it
            if gone and trusted:
                self._await(neighbour, self.round + 1)  # it is there, and never in time unless it is waited for
            raise Refused(Refusal.STALE)
        if round_ in neighbour.masks:
            raise Refused(Refusal.DUPLICATE)
        neighbour.masks[round_] = mask
        if (gone or neighbour.state is not State.AWAITED) and trusted:
            self._await(neighbour, round_)


def host(address: str) -> str:
    """Return the host of an address such as ``tcp://127.0.0.1:47100``."""
    name = address.partition("://")[2].rpartition(":")[0]
    return "127.0.0.1" if name == "localhost" else name
