"""The masks of one peer as a stream to each neighbour, and its neighbours' streams to it.

What a mask is coded against must be the same at both ends: a key frame builds on the forecast that the run's seed
gives, each further mask on those before it, one chain. A sender takes what it handed to a connection as arrived,
because TCP delivers in order; where that turns out wrong (a broken connection, a restart, a refused mask) the receiver
says how far its chain goes. What it lacks comes again as it was, or, where the chains have parted, from a key frame on.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from dslth import wire
from dslth.coding import codecs
from dslth.coding.codecs import Codec, Forecast, History
from dslth.masks import BitMask
from dslth.wire import Frames, Header, Hello, Refusal, Refused

__all__ = ["Incoming", "Outgoing"]

SAME_AGAIN = 3
"""How often the same masks are sent again as they were, before a key frame begins a new chain."""


class _Coded(NamedTuple):
    """A mask as it was sent: ``depth`` masks of the chain before it."""

    round: int
    depth: int
    mask: BitMask
    codec: Codec
    payload: bytes


class Outgoing:
    """The masks that a peer sends; each is coded once for all neighbours that hold the same.

    The last ``keep`` masks are kept for neighbours that lost some.
    """

    def __init__(self, digest: bytes, sender: int, codec: str, forecast: Forecast, keep: int) -> None:
        self._digest, self._sender, self._codec, self._keep = digest, sender, codec, keep
        self._kept: deque[tuple[int, BitMask]] = deque(maxlen=keep)
        self._start = History(forecast)
        self._held: dict[int, History] = {}
        self._coded: dict[int, deque[_Coded]] = {}
        self._has: dict[int, int] = {}
        self._again: dict[int, tuple[int, int]] = {}

    @property
    def kept(self) -> tuple[tuple[int, BitMask], ...]:
        """The last masks and their rounds, oldest first."""
        return tuple(self._kept)

    @property
    def newest(self) -> int | None:
        """The round of the last mask."""
        return self._kept[-1][0] if self._kept else None

    def restore(self, kept: Iterable[tuple[int, BitMask]]) -> None:
        """Take back the masks that were sent before a restart."""
        self._kept.extend(kept)

    def holds(self, neighbour: int, round_: int | None) -> None:
        """Learn of a neighbour that greets up to which round it has this peer's masks."""
        self._has[neighbour] = -1 if round_ is None else round_

    def messages(
        self, round_: int, mask: BitMask, acknowledge: Mapping[int, int | None]
    ) -> Iterator[tuple[int, Frames]]:
        """Yield the round's message for each neighbour; ``acknowledge`` is the round of its mask that is held here.

        A neighbour that has the mask already, from before a restart of this peer, gets none.
        """
        self._kept.append((round_, mask))
        made: dict[int, tuple[History, _Coded]] = {}
        for neighbour, held in acknowledge.items():
            if self._has.get(neighbour, -1) >= round_:
                continue
            history = self._held.get(neighbour, self._start)
            if history.round != round_ - 1:
                history = self._start  # rounds were skipped
            if id(history) not in made:
                made[id(history)] = self._code(round_, mask, history)
            self._held[neighbour], coded = made[id(history)]
            self._coded.setdefault(neighbour, deque(maxlen=self._keep)).append(coded)
            yield neighbour, self._frames(coded, held)

    def again(
        self, neighbour: int, needs: int, held: int | None, depth: int, acknowledge: int | None
    ) -> Iterator[Frames]:
        """Yield what a neighbour has lost.

        It is in round ``needs`` and holds masks up to round ``held``, the last one the ``depth``-th of its chain (in
        the header's form). Where these are not of the chain that it was sent, a new one begins, with the first mask
        that it can use of those that are kept.
        """
        after = -1 if held is None else held
        if not self._kept or after >= self._kept[-1][0]:
            return
        lacking = [coded for coded in self._coded.get(neighbour, ()) if coded.round > after]
        before, tries = self._again.get(neighbour, (after, 0))
        tries = tries + 1 if before == after else 1
        self._again[neighbour] = after, tries
        if tries > SAME_AGAIN or not lacking or not _continues(lacking[0], after, depth):
            lacking = self._chain(neighbour, max(needs, after + 1))
        for coded in lacking:
            yield self._frames(coded, acknowledge)

    def _chain(self, neighbour: int, first: int) -> list[_Coded]:
        """Begin a new chain for a neighbour with the first kept mask of round ``first`` or later, or the last."""
        masks = [kept for kept in self._kept if kept[0] >= first] or [self._kept[-1]]
        history, chain = self._start, []
        for round_, mask in masks:
            history, coded = self._code(round_, mask, history if history.round == round_ - 1 else self._start)
            chain.append(coded)
        self._held[neighbour], self._coded[neighbour] = history, deque(chain, maxlen=self._keep)
        return chain

    def _code(self, round_: int, mask: BitMask, history: History) -> tuple[History, _Coded]:
        codec, payload = codecs.encode(mask, history, self._codec)
        return history.advanced(mask, round_), _Coded(round_, history.depth, mask, codec, payload)

    def _frames(self, coded: _Coded, held: int | None) -> Frames:
        packed = coded.mask.pack()
        header = wire.mask_header(self._digest, self._sender, coded.round, packed, coded.codec, coded.depth, held)
        return header, coded.payload


def _continues(coded: _Coded, held: int, depth: int) -> bool:
    """Return whether a mask can be read by one that holds those up to round ``held``, ``depth`` in its chain."""
    return coded.depth == 0 or (coded.round == held + 1 and wire.short_depth(coded.depth) == depth)


class Incoming:
    """The masks that a peer receives; each neighbour's are decoded in the order of their rounds.

    ``forecast`` gives the forecast of a peer, by its id and its hello; ``fewer`` and ``flip`` are ``wire.read_mask``'s.
    """

    def __init__(self, forecast: Callable[[int, Hello], Forecast], *, fewer: bool = False, flip: float = 0.0) -> None:
        self._forecast, self._fewer, self._flip = forecast, fewer, flip
        self._starts: dict[int, History] = {}
        self._held: dict[int, History] = {}

    def held(self, neighbour: int) -> int | None:
        """Return the round of a neighbour's newest mask."""
        history = self._held.get(neighbour)
        return history.round if history else None

    def depth(self, neighbour: int) -> int:
        """Return how many masks a neighbour's chain has, 0 where none of its masks is here."""
        history = self._held.get(neighbour)
        return history.depth if history else 0

    def read(self, header: Header, payload: bytes, sender: Hello) -> BitMask:
        """Decode a mask and hold it; Refused where it repeats one or builds on one that is not held."""
        peer, held = header.sender, self._held.get(header.sender)
        if peer not in self._starts:
            self._starts[peer] = History(self._forecast(peer, sender))
        old = held is not None and header.round <= held.round
        if header.depth == 0:
            history = self._starts[peer]
        elif old:
            raise Refused(Refusal.DUPLICATE)  # what it builds on is past
        elif held is None or held.round != header.round - 1 or wire.short_depth(held.depth) != header.depth:
            raise Refused(Refusal.UNKNOWN_BASE)
        else:
            history = held
        if held is not None and header.round == held.round and wire.is_of(header, held.mask):
            mask = held.mask  # a key frame of what is here already: its sender begins a new chain
        else:
            mask = wire.read_mask(header, payload, sender, history, fewer=self._fewer, flip=self._flip)
        if not old or (held is not None and header.round == held.round and mask == held.mask):
            self._held[peer] = history.advanced(mask, header.round)
        return mask
