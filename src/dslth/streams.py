"""The masks of one peer as a stream to each neighbour, and its neighbours' streams to it.

What a mask is coded against must be the same at both ends. A sender takes what it handed to a connection as arrived,
because TCP delivers in order; where that turns out wrong (a broken connection, a restart, a refused mask) the receiver
says in a hello what it holds, and gets a key frame in the same round.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from dslth import codecs, wire
from dslth.codecs import History
from dslth.masks import BitMask
from dslth.wire import Frames, Header, Hello, Refusal, Refused

__all__ = ["Incoming", "Outgoing"]


class Outgoing:
    """The masks that a peer sends; each is coded once for all neighbours that hold the same."""

    def __init__(self, digest: bytes, sender: int, codec: str) -> None:
        self._digest, self._sender, self._codec = digest, sender, codec
        # the last two: a neighbour that lost a mask may be a round behind
        self._last: deque[tuple[int, BitMask]] = deque(maxlen=2)
        self._held: dict[int, History] = {}

    def messages(self, round_: int, mask: BitMask, acknowledge: dict[int, int | None]) -> Iterator[tuple[int, Frames]]:
        """Give the round's message for each neighbour, with the round of the neighbour's mask to acknowledge."""
        self._last.append((round_, mask))
        coded: dict[int, tuple[History, codecs.Codec, bytes]] = {}
        for neighbour, held in acknowledge.items():
            history = self._held.get(neighbour)
            if id(history) not in coded:
                codec, payload = codecs.encode(mask, history, self._codec)
                coded[id(history)] = (
                    history.advanced(mask, round_) if history else History(mask, round_),
                    codec,
                    payload,
                )
            self._held[neighbour], codec, payload = coded[id(history)]
            depth = history.depth if history else 0
            header = wire.mask_header(self._digest, self._sender, round_, mask.pack(), codec, depth, held)
            yield neighbour, (header, payload)

    def again(self, neighbour: int, needs: int, acknowledged: int | None, held: int | None) -> Iterator[Frames]:
        """Give the masks that a neighbour has lost, built on nothing.

        ``needs`` is the round it is in, ``acknowledged`` that of the newest mask it holds. Nothing where it holds what
        it was sent. Where what it needs is older than what is kept, its next mask is a key frame all the same.
        """
        history = self._held.get(neighbour)
        if history is None or (acknowledged is not None and acknowledged >= history.round):
            return
        self.lost(neighbour)
        first = max(needs, -1 if acknowledged is None else acknowledged + 1)
        for round_, mask in self._last:
            if round_ >= first:
                codec, payload = codecs.encode(mask, None, self._codec)
                header = wire.mask_header(self._digest, self._sender, round_, mask.pack(), codec, 0, held)
                self._held[neighbour] = History(mask, round_)
                yield header, payload

    def lost(self, neighbour: int) -> None:
        """Forget what a neighbour holds: its next mask is a key frame."""
        self._held.pop(neighbour, None)


class Incoming:
    """The masks that a peer receives; each neighbour's are decoded in the order of their rounds."""

    def __init__(self, sizes: Sequence[int], *, fewer_ones: bool) -> None:
        self._sizes, self._fewer_ones = tuple(sizes), fewer_ones
        self._held: dict[int, History] = {}

    def held(self, neighbour: int) -> int | None:
        """Give the round of a neighbour's newest mask."""
        history = self._held.get(neighbour)
        return history.round if history else None

    def read(self, header: Header, payload: bytes, sender: Hello) -> BitMask:
        """Decode a mask and hold it; Refused where it repeats one or builds on one that is not held."""
        history = self._held.get(header.sender)
        if history and header.round <= history.round:
            return self._read_old(header, payload, sender, history)
        if header.depth == 0:
            history = None
        elif history is None or wire.short_depth(history.depth) != header.depth or history.round != header.round - 1:
            raise Refused(Refusal.UNKNOWN_BASE)
        mask = wire.read_mask(header, payload, sender, history, fewer_ones=self._fewer_ones)
        after = history.advanced(mask, header.round) if history else History(mask, header.round)
        self._held[header.sender] = after
        return mask

    def _read_old(self, header: Header, payload: bytes, sender: Hello, history: History) -> BitMask:
        """Decode a key frame of a round that is past; what is not one cannot be decoded any more."""
        if header.depth:
            raise Refused(Refusal.DUPLICATE)
        mask = wire.read_mask(header, payload, sender, fewer_ones=self._fewer_ones)
        if header.round == history.round and mask == history.mask:
            # it crossed our word that we have the mask: the sender begins anew there, and so do we
            self._held[header.sender] = History(mask, header.round)
        return mask

    def lost(self, neighbour: int) -> None:
        """Forget a neighbour's masks, so that it hears of it and begins anew."""
        self._held.pop(neighbour, None)
