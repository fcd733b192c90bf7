"""The masks of one peer as a stream to each neighbour, and its neighbours' streams to it.

What a mask is coded against must be the same at both ends. A sender takes what it handed to a connection as arrived,
because TCP delivers in order; where that turns out wrong (a broken connection, a restart, a refused mask) the receiver
says in a hello what it holds, and gets a key frame in the same round.
"""

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
        self._last: tuple[int, BitMask, bytes] | None = None
        self._held: dict[int, History] = {}

    def messages(self, round_: int, mask: BitMask, acknowledge: dict[int, int | None]) -> Iterator[tuple[int, Frames]]:
        """Give the round's message for each neighbour, with the round of the neighbour's mask to acknowledge."""
        self._last = (round_, mask, mask.pack())
        coded: dict[int, tuple[History, codecs.Codec, bytes]] = {}
        for neighbour, held in acknowledge.items():
            history = self._held.get(neighbour)
            if id(history) not in coded:
                codec, payload = codecs.encode(mask, history, self._codec)
                after = history.advanced(mask, round_) if history else History(mask, round_)
                coded[id(history)] = after, codec, payload
            self._held[neighbour], codec, payload = coded[id(history)]
            yield neighbour, self._message(codec, payload, history, held)

    def key_frame(self, neighbour: int, held: int | None) -> Frames | None:
        """Give the last mask again, built on nothing, for a neighbour that has lost it; None before the first."""
        if self._last is None:
            return None
        round_, mask, _ = self._last
        codec, payload = codecs.encode(mask, None, self._codec)
        self._held[neighbour] = History(mask, round_)
        return self._message(codec, payload, None, held)

    def _message(self, codec: codecs.Codec, payload: bytes, history: History | None, held: int | None) -> Frames:
        assert self._last is not None  # noqa: S101
        round_, _, packed = self._last
        depth = history.depth if history else 0
        return wire.mask_header(self._digest, self._sender, round_, packed, codec, depth, held), payload

    def lost(self, neighbour: int) -> None:
        """Forget what a neighbour holds: its next mask is a key frame."""
        self._held.pop(neighbour, None)

    def lacks(self, neighbour: int, acknowledged: int | None) -> bool:
        """Tell whether a neighbour that holds the mask of round ``acknowledged`` has lost what it was sent."""
        history = self._held.get(neighbour)
        return history is not None and (acknowledged is None or acknowledged < history.round)


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
            if header.depth == 0 and header.round == history.round:
                # a key frame that crossed our word that we have it: the sender begins anew there, so do we
                mask = wire.read_mask(header, payload, sender, fewer_ones=self._fewer_ones)
                if mask == history.mask:
                    self._held[header.sender] = History(mask, header.round)
            raise Refused(Refusal.DUPLICATE)
        if header.depth == 0:
            history = None
        elif history is None or wire.short_depth(history.depth) != header.depth or history.round != header.round - 1:
            raise Refused(Refusal.UNKNOWN_BASE)
        mask = wire.read_mask(header, payload, sender, history, fewer_ones=self._fewer_ones)
        after = history.advanced(mask, header.round) if history else History(mask, header.round)
        self._held[header.sender] = after
        return mask

    def lost(self, neighbour: int) -> None:
        """Forget a neighbour's masks, so that it hears of it and begins anew."""
        self._held.pop(neighbour, None)
