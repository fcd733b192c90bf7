"""What a peer sends to its neighbours, and when: events in, actions out; no socket, no thread, no clock of its own.

A peer is in one phase at a time. A wish of the peer begins a phase (``join``, ``gather``, ``leave``), events move it on
(``connections``, ``deliver``, ``tick``), and it lasts while the exchange is ``busy``. Each call may add to ``actions``,
which the caller carries out. While a peer learns, between two phases, no events are handled.

::

    join()    JOINING    hello until every neighbour has said it too and welcomed this peer, or the time-out
              LOOKING    a peer that comes late waits a moment for masks that show which round the others are in
    gather()  GATHERING  the round's masks, until all neighbours that are waited for have sent theirs, or the deadline
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
from dslth.runs.events import Happening
from dslth.topology import Topology
from dslth.transport.base import Delivery
from dslth.wire import Frames, Header, Hello, Kind, Refusal, Refused

__all__ = ["Exchange", "Phase", "Place"]

GREET_SECONDS = 2.0
"""After how long a peer repeats a hello or a bye that is not answered."""
ASK_SECONDS = 1.0
"""After how long, at the earliest, a peer asks for a mask that does not come; twice as long each time."""
MOST_PATIENT_SECONDS = 60.0
"""And at the latest, unless the neighbour's last mask took longer. A peer adapts to a neighbour's pace: it doubles this
time when it asked in vain, halves it when the mask came ``QUICK`` times as fast, and sets it back to the earliest when
a message was lost."""
QUICK = 8
AGAIN_SECONDS = 1.0
"""Least time within a round before a peer again reports masks as lost, or sends them again."""
AGAIN_SHARE = 0.1
"""Share of its time, at most, that a peer spends on sending masks again to one neighbour."""
MOVE_SECONDS = 5.0
"""Least time between two moves of a neighbour that a peer follows."""
AHEAD = 8
"""Rounds that a neighbour's mask may be ahead and still be kept for later, besides those between checkpoints."""
SKIP = 16
"""Rounds that a peer skips at once, at most: a neighbour that lies about the round costs no more than that."""
EXTRA, EXTRA_SECONDS = 256, 0.5
"""How many more messages a peer reads once a round is over, and for how long, so that a flood does not hold it."""
LEAVE_SECONDS = 5.0
"""How long a finished peer stays for neighbours that are not done."""
REFUSED_SECONDS = 5.0
"""How long a refused peer stays, so that the peers that refused it learn of the refusal too."""


@dataclass(frozen=True)
class Place:
    """A peer's place in a run: its id, the run, and where its neighbours listen.

    ``advertise`` is the peer's own address if its neighbours know another.
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
    """One peer's side of the exchange. ``round`` is the one that the peer is in; ``me`` is its hello.

    ``identity`` are the settings that all peers of a run share. ``clock`` returns seconds that never decrease.
    ``authenticated``: every delivery's speaker is proven; otherwise ``host_of`` returns the host of a route.
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
        # a killed neighbour resumes from its last checkpoint, and peers in its round are one ahead of it
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
        """Whether a lost neighbour is waited for until it is back."""
        return self._mode.patient

    @property
    def busy(self) -> bool:
        """Whether a phase is going on."""
        return self._phase is not Phase.NOTHING

    @property
    def wake(self) -> float:
        """The time at which the next tick is due at the latest, while busy."""
        return self._wake

    def actions(self) -> list[Action]:
        """Return the actions since the last call, to be carried out in this order."""
        actions, self._actions = self._actions, []
        return actions

    @property
    def sent(self) -> tuple[tuple[int, M], ...]:
        """The masks that were sent last, with their rounds: neighbours may still need them."""
        return self._outgoing.kept

    def restore(self, round_: int, sent: Iterable[tuple[int, M]]) -> None:
        """Continue in a round, with the masks that were sent before a restart."""
        self.round = round_
        self._outgoing.restore(sent)

    def end_round(self) -> None:
        """Move to the next round."""
        self.round += 1

    def _begin(self, phase: Phase, until: float) -> None:
        self._phase, self._began, self._until = phase, self._clock(), until
        self._wake = self._began

    # --- what the peer wants ----------------------------------------------------------------------------------------

    def join(self, *, resumed: bool) -> None:
        """Begin to say hello to all neighbours until each has said it too, and welcomed this one.

        After both, no message from before the first round is still on its way. A neighbour that does not come within
        the time-out is an error in a new ``sync`` run; else the peer begins without it.
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
        """Begin to wait for the neighbours' masks of the round, up to the deadline.

        A neighbour that misses a deadline in ``sync`` mode is not waited for until it is heard again.
        """
        now = self._clock()
        self._begin(Phase.GATHERING, now + self._mode.deadline)
        self._over, self._extra = None, 0
        self._missing = [neighbour for neighbour in self._all if neighbour.state is State.AWAITED]
        for neighbour in self._all:
            neighbour.asking.start(now, neighbour.patience)

    def catch_up(self) -> None:
        """Skip rounds if the connected neighbours are far ahead, a bounded number at once.

        A neighbour that waits for this peer's mask is in its round or before. Only masks that were read count, not
        claims, and of the connected neighbours the low median: a liar cannot push further.
        """
        ahead = min(self._mode.shown(self._there(), self.round) + 1, self._rounds - 1)
        if ahead > self.round + 1 + BEHIND:  # a smaller lag is made up by playing: the others wait
            ahead = min(ahead, self.round + SKIP)
            self._notice("skipped", detail=f"to round {ahead}")
            self.round = ahead
            for neighbour in self._all:
                neighbour.forget_masks_before(ahead)

    def leave(self) -> None:
        """Begin to say bye, and stay until the neighbours have too: they may still need this peer's masks."""
        self._leaves = True
        if not self._has_connected:  # after a restart there was nothing left to play
            for neighbour in self._all:
                neighbour.state, neighbour.first = State.AWAITED, self.round
            self._connect()
        now = self._clock()
        self._begin(Phase.LEAVING, now + (self._place.join_timeout if self.patient else LEAVE_SECONDS))
        for neighbour in self._all:
            self._say_bye(neighbour)
            neighbour.asking.start(now, GREET_SECONDS)

    def _connect(self) -> None:
        self._has_connected = True
        self._actions += [Connect(neighbour.id, neighbour.address) for neighbour in self._all]

    # --- what happens -----------------------------------------------------------------------------------------------

    def connections(self, connected: frozenset[int], opened: Sequence[int]) -> None:
        """Take which neighbours this peer's connections reach, and to which one was opened since the last call."""
        self._connected = connected
        for neighbour in self._all:
            neighbour.reached |= neighbour.id in connected
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
        """Accept what arrived, or count why not."""
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
        """Do what is due. ``idle``: there is nothing more to deliver now.

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
        """Note that this process was stopped while it waited, so that the time does not count against neighbours."""
        if self._phase is Phase.GATHERING:
            self._began, self._until = self._began + seconds, self._until + seconds
            for neighbour in self._all:
                neighbour.asking.at += seconds

    def unsent(self, action: Send) -> None:
        """Note that a message could not be handed over: the neighbour is not connected, or its queue is full."""
        if action.kind is Kind.HELLO:
            self._neighbours[action.neighbour].ungreeted = True
        elif action.kind is Kind.BYE:
            self._neighbours[action.neighbour].confirmed_bye = False

    def unreachable(self, action: Connect) -> None:
        """Note that no neighbour can be at the address that one claimed to have moved to."""
        neighbour = self._neighbours[action.neighbour]
        neighbour.address, neighbour.moved_at, neighbour.moving = action.before, float("-inf"), False
        self._actions.append(Refuse(Refusal.WRONG_ADDRESS))  # the hello itself was taken in

    # --- joining ----------------------------------------------------------------------------------------------------

    def _go_on_joining(self, now: float) -> None:
        missing = [neighbour for neighbour in self._all if not neighbour.is_met]
        if not missing:
            self._begin(Phase.LOOKING, now + GREET_SECONDS)
            self._wake = self._until
            return
        there = [neighbour for neighbour in missing if neighbour.id in self._connected]
        for neighbour in there:
            # a hello, or its welcome, may have been lost; a neighbour that has sent nothing may only be slow to start
            if neighbour.asking.due(now, 1 if neighbour.met else 2, 4 * GREET_SECONDS):
                self._say_hello(neighbour)
        self._check_run(missing, now)
        if now >= self._until:
            self._begin_without(missing)
        self._wake = min([self._until, self._refused_until, *(neighbour.asking.at for neighbour in there)])

    def _check_run(self, missing: Sequence[Neighbour[M]], now: float) -> None:
        """Raise WrongRunError if neighbours say that this peer is of another run.

        If it can begin without those that refuse it, and one has welcomed it, they are the ones of another run.
        """
        refusing = [neighbour for neighbour in self._all if neighbour.differs]
        welcomed = any(Kind.WELCOME in neighbour.met for neighbour in self._all)
        if not refusing or (welcomed and (self._resumed or self._mode.begins_alone)):
            self._refused_until = float("inf")
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
                + "; start them, correct their addresses, or raise --join-timeout"
            )
        for neighbour in missing:
            if neighbour.state is not State.AWAITED:
                self._miss("lost", neighbour)

    def _is_late(self) -> bool:
        """Return whether the neighbours claim to be far ahead, and their masks do not show it yet."""
        far, there = self.round + 1 + BEHIND, self._there()
        says, shows = (middle(rounds, self.round) for rounds in ([n.claimed for n in there], [n.heard for n in there]))
        return not self.patient and says > far >= shows

    # --- gathering --------------------------------------------------------------------------------------------------

    def _go_on_gathering(self, now: float, *, idle: bool) -> None:
        missing = self._mode.missing(self._all, self.round, self._connected)
        for neighbour in set(self._missing).difference(missing):
            neighbour.took = now - self._began
            if QUICK * neighbour.took < neighbour.patience:
                neighbour.patience = max(neighbour.patience / 2, ASK_SECONDS)
        self._missing = missing
        for neighbour in missing:
            if neighbour.asking.due(now, 2, max(MOST_PATIENT_SECONDS, neighbour.took)):
                self._say_word(Kind.ASK, neighbour)
        if missing and now < self._until:
            self._wake = min([self._until, *(neighbour.asking.at for neighbour in missing)])
            return
        # the wait is over, but messages that are already here are still read: a lost neighbour may be back
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
        if now >= self._until:  # a patient peer still stays for those that it has met since it started, or reaches
            known = [n for n in there if n.met or (n.id in self._connected and not n.differs)]
            there = known if self.patient else []
        if not there:
            self._phase = Phase.NOTHING
            return
        for neighbour in there:
            if neighbour.asking.due(now, 2, MOST_PATIENT_SECONDS):  # a bye may have been lost, this peer's or theirs
                if not neighbour.is_met:
                    self._say_hello(neighbour)
                self._say_bye(neighbour)
        given_up_at = [at for at in (self._until, *(neighbour.back_by for neighbour in there)) if at > now]
        self._wake = min([*given_up_at, *(neighbour.asking.at for neighbour in there)])

    # --- saying -----------------------------------------------------------------------------------------------------

    def _notice(self, what: Happening, neighbour: Neighbour[M] | None = None, detail: str = "") -> None:
        self._actions.append(Notice(what, self.round, neighbour.id if neighbour else None, detail))

    def _say(self, neighbour: Neighbour[M], kind: Kind, frames: Frames) -> None:
        if neighbour.id in self._connected:
            self._actions.append(Send(neighbour.id, kind, frames))
            neighbour.spoken_to = True

    def _holds(self, neighbour: Neighbour[M]) -> int | None:
        """Return the round up to which a neighbour's masks are held, without those that came after a lost one."""
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
        """Ask a neighbour what it has sent, or tell it what was sent to it."""
        held, sent = self._holds(neighbour), self._outgoing.newest
        self._say(neighbour, kind, wire.word(kind, self.me.digest, self._place.peer, self.round, held, sent))

    def _say_lost(self, neighbour: Neighbour[M]) -> None:
        """Ask for masks that a neighbour sent and that did not come."""
        neighbour.patience = ASK_SECONDS
        if self._lately(neighbour, Kind.LOST):
            return
        held, depth = self._holds(neighbour), self._incoming.depth(neighbour.id)
        if held != self._incoming.held(neighbour.id):
            depth = 0  # a later one came: its chain is no use for earlier ones
        self._say(neighbour, Kind.LOST, wire.lost(self.me.digest, self._place.peer, self.round, held, depth))

    def _lately(self, neighbour: Neighbour[M], what: Kind) -> bool:
        """Return whether something was done for a neighbour a moment ago; if not, note that it is done now.

        For lost masks only the same round counts, for hellos any round.
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
                    self._say_hello(neighbour)  # its own was lost; a second hello makes it greet again
                raise Refused(Refusal.NO_HELLO)  # each connection says hello first
            case _ if header.tag != wire.tag(self.me.digest):
                raise Refused(Refusal.WRONG_RUN)
            case _:
                self._accept_word(neighbour, header, payload)

    def _accept_word(self, neighbour: Neighbour[M], header: Header, payload: bytes) -> None:
        """Accept what a neighbour sends after its hello."""
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
        if not again:  # it may have been restarted, and knows of no bye
            neighbour.heard_bye = False
            self._may_come_back(neighbour)
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
        """Accept a hello or a welcome; raises Refused if it is of another run, or contradicts an earlier one."""
        hello = wire.read_hello(payload)
        if hello.digest != self.me.digest or hello.sizes != self.me.sizes:
            raise Refused(Refusal.WRONG_RUN)
        if neighbour.hello and neighbour.hello.ones != hello.ones:
            raise Refused(Refusal.WRONG_DENSITY)  # a device keeps its density within a run
        neighbour.hello = hello
        neighbour.met.add(Kind(header.kind))
        neighbour.claimed = max(neighbour.claimed or 0, header.round)  # an old hello may come late
        return hello

    def _accept_bye(self, neighbour: Neighbour[M], header: Header) -> None:
        heard = header.held > 0
        self._actions.append(CountLinks())
        heard_before, neighbour.heard_bye = neighbour.heard_bye, heard or neighbour.heard_bye
        neighbour.said_bye = True
        self._may_come_back(neighbour)
        if self.patient:  # it stays until this peer is done too: its last masks may have to be sent again
            # a neighbour that repeats that it heard this peer's bye does not know that its own was heard
            again = heard_before and not self._lately(neighbour, Kind.BYE)
            if self._leaves and (not heard or not neighbour.confirmed_bye or again):
                self._say_bye(neighbour)
        elif neighbour.state is not State.LEFT:
            lost, neighbour.state = neighbour.state is State.LOST, State.LEFT
            if header.round < self._rounds:
                (self._notice if lost else self._miss)("left", neighbour)

    def _may_come_back(self, neighbour: Neighbour[M]) -> None:
        """Give a neighbour time to be reached again: once, because a stranger may say all this in its name."""
        if neighbour.reached:
            neighbour.reached, neighbour.back_by = False, self._clock() + self._place.join_timeout

    def _follow(self, neighbour: Neighbour[M], address: str, route: Hashable) -> None:
        """Connect to a neighbour at its new address, or again at the topology's (no address).

        Raises Refused for other hosts without keys: a stranger in a neighbour's name must not direct a peer anywhere.
        """
        address, now = address or neighbour.home, self._clock()
        if address == neighbour.address:
            return
        if now < neighbour.moved_at + MOVE_SECONDS:
            neighbour.to_follow = address, route
            return
        if not self._authenticated:  # else only the owner of its key is accepted there
            hosts = {self._host_of(route), host(neighbour.address), host(neighbour.home)}
            if host(address) not in hosts:
                raise Refused(Refusal.WRONG_ADDRESS)
        self._actions.append(Connect(neighbour.id, address, neighbour.address))
        neighbour.address, neighbour.moved_at, neighbour.moving = address, now, True

    def _look_for_losses(self, neighbour: Neighbour[M], header: Header) -> None:
        """Ask for what a neighbour says it has sent and has not come: it should have come before this message."""
        held = self._holds(neighbour)
        if header.sent is not None and (held is None or held < header.sent):
            self._say_lost(neighbour)
        elif header.kind == Kind.TELL:
            neighbour.patience = min(2 * neighbour.patience, max(MOST_PATIENT_SECONDS, 2 * neighbour.took))

    def _send_again(self, neighbour: Neighbour[M], header: Header) -> None:
        """Send the masks again that a neighbour lost, but not twice before it may have noticed."""
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
            neighbour.met.add(Kind.WELCOME)  # long past its first round: its welcome must be lost
            raise Refused(Refusal.FUTURE)
        else:
            self._put(neighbour, header.round, mask)

    def _put(self, neighbour: Neighbour[M], round_: int, mask: M) -> None:
        """Keep a mask for its round."""
        trusted, gone = self._mode.trusts(neighbour, self.round), neighbour.missed_in is not None
        if round_ < self.round:  # too late, but the next one may build on it
            if gone and trusted:
                self._await(neighbour, self.round + 1)  # it is alive, but never in time unless it is waited for
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
