"""The masks of one peer as a stream to each neighbour, and its neighbours' streams to it.

What a mask is coded against must be the same at both ends: a key frame builds on the forecast that the run's seed
gives, each further mask on those before it. A sender takes what it handed to a connection as arrived, because TCP
delivers in order; where that turns out wrong (a broken connection, a restart, a refused mask) the receiver says in a
hello what it holds, and gets what it lacks as key frames in the same round.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from dslth import codecs, wire
from dslth.codecs import Forecast, History
from dslth.masks import BitMask
from dslth.wire import Frames, Header, Hello, Refusal, Refused

__all__ = ["Incoming", "Outgoing"]


class Outgoing:
    """The masks that a peer sends; each is coded once for all neighbours that hold the same.

    The last ``keep`` masks are kept for neighbours that lost some.
    """

    def __init__(self, digest: bytes, sender: int, codec: str, forecast: Forecast, keep: int) -> None:
        self._digest, self._sender, self._codec = digest, sender, codec
        self._kept: deque[tuple[int, BitMask]] = deque(maxlen=keep)
        self._start = History(forecast)
        self._held: dict[int, History] = {}
        self._has: dict[int, int] = {}

    @property
    def kept(self) -> tuple[tuple[int, BitMask], ...]:
        """The last masks and their rounds, oldest first."""
        return tuple(self._kept)

    def restore(self, kept: Iterable[tuple[int, BitMask]]) -> None:
        """Take back the masks that were sent before a restart."""
        self._kept.extend(kept)

    def messages(self, round_: int, mask: BitMask, acknowledge: dict[int, int | None]) -> Iterator[tuple[int, Frames]]:
        """Give the round's message for each neighbour, with the round of the neighbour's mask to acknowledge.

        A neighbour that has the mask already, from before a restart of this peer, gets none.
        """
        self._kept.append((round_, mask))
        coded: dict[int, tuple[History, codecs.Codec, bytes]] = {}
        for neighbour, held in acknowledge.items():
            if self._has.get(neighbour, -1) >= round_:
                continue
            history = self._held.get(neighbour, self._start)
            if history.round != round_ - 1:
                history = self._start  # rounds were skipped
            if id(history) not in coded:
                codec, payload = codecs.encode(mask, history, self._codec)
                coded[id(history)] = history.advanced(mask, round_), codec, payload
            self._held[neighbour], codec, payload = coded[id(history)]
            header = wire.mask_header(self._digest, self._sender, round_, mask.pack(), codec, history.depth, held)
            yield neighbour, (header, payload)

    def again(self, neighbour: int, needs: int, acknowledged: int | None, held: int | None) -> Iterator[Frames]:
        """Give the masks that a neighbour has lost, built on nothing.

        ``needs`` is the round it is in, ``acknowledged`` that of the newest mask it holds. Nothing where it holds what
        it was sent. Where what it needs is older than what is kept, its next mask is a key frame all the same.
        """
        has = self._has[neighbour] = -1 if acknowledged is None else acknowledged
        if not self._kept or has >= self._kept[-1][0]:
            return
        self.lost(neighbour)
        for round_, mask in self.kept:
            if round_ >= max(needs, has + 1):
                codec, payload = codecs.encode(mask, self._start, self._codec)
                header = wire.mask_header(self._digest, self._sender, round_, mask.pack(), codec, 0, held)
                self._held[neighbour] = self._start.advanced(mask, round_)
                yield header, payload

    def lost(self, neighbour: int) -> None:
        """Forget what a neighbour holds: its next mask is a key frame."""
        self._held.pop(neighbour, None)


class Incoming:
    """The masks that a peer receives; each neighbour's are decoded in the order of their rounds.

    ``forecast`` gives the forecast of a peer, by its id and its hello; ``fewer`` and ``flip`` are ``wire.read_mask``'s.
    """

    def __init__(self, forecast: Callable[[int, Hello], Forecast], *, fewer: bool = False, flip: float = 0.0) -> None:
        self._forecast, self._fewer, self._flip = forecast, fewer, flip
        self._starts: dict[int, History] = {}
        self._held: dict[int, History] = {}

    def held(self, neighbour: int) -> int | None:
        """Give the round of a neighbour's newest mask."""
        history = self._held.get(neighbour)
        return history.round if history else None

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
        mask = wire.read_mask(header, payload, sender, history, fewer=self._fewer, flip=self._flip)
        # a key frame of the mask that is held crossed our word that we have it: the sender begins anew there
        if held is None or not old or (header.round == held.round and mask == held.mask):
            self._held[peer] = history.advanced(mask, header.round)
        return mask

    def lost(self, neighbour: int) -> None:
        """Forget a neighbour's masks, so that it hears of it and begins anew."""
        self._held.pop(neighbour, None)
