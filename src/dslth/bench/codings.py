"""The messages of the compared methods and their coding on the wire; the coding of masks is in ``exchange.streams``.

Numbers are raw and little-endian; lengths are checked, and what is read is checked against the header's checksum.
Changes and repetitions build on the message before; all other payloads are key frames.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from math import log, log2
from typing import Generic, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from dslth import wire
from dslth.coding.codecs import BY_ID
from dslth.coding.rangecoder import ONE, Decoder, Encoder
from dslth.seeds import Stream
from dslth.wire import Header, Hello, Refusal, Refused

__all__ = [
    "BodyCoding",
    "ChangesCoding",
    "Estimate",
    "KlmsCoding",
    "Layout",
    "Link",
    "Model",
    "RepeatCoding",
    "Sample",
    "SampleCoding",
    "Sent",
    "SparseCoding",
    "SparseModel",
    "WaveletCoding",
    "WholeCoding",
]

_IDS = range(100, 110)
FLOAT32, FLOAT16, CHANGES, SPARSE, SAME, BODY, SAMPLE, WAVELETS, ESTIMATE, KLMS = _IDS
"""Wire ids of these codecs; none is a mask codec's."""
if set(_IDS) & BY_ID.keys():
    raise AssertionError("a mask's codec has the wire id of a compared method's")

LEVELS = 7
"""The largest multiple of its layer's scale by which a parameter changes."""
SURE = 64
"""The least guess, in units of 2**-16, that a weight is kept, or dropped."""


# --- messages -------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """A network's parameters in one vector: the length of each, and which are weights (the others are biases)."""

    lengths: tuple[int, ...]
    is_weight: tuple[bool, ...]

    @property
    def total(self) -> int:
        """Number of parameters."""
        return sum(self.lengths)

    def ones(self, kept: NDArray[np.bool_]) -> tuple[int, ...]:
        """Count the kept weights of each layer."""
        bounds = pairwise(accumulate(self.lengths, initial=0))
        layers = zip(bounds, self.is_weight, strict=True)
        return tuple(int(np.count_nonzero(kept[start:end])) for (start, end), is_weight in layers if is_weight)

    def density(self, kept: NDArray[np.bool_]) -> tuple[float, ...]:
        """Return the share of kept weights of each layer."""
        sizes = [n for n, is_weight in zip(self.lengths, self.is_weight, strict=True) if is_weight]
        return tuple(ones / n for ones, n in zip(self.ones(kept), sizes, strict=True))


@dataclass(frozen=True)
class Sent(ABC):
    """A message of a compared method, see ``streams.Message``; ``raw`` is its packed form."""

    raw: bytes
    layout: Layout

    @property
    @abstractmethod
    def values(self) -> NDArray[np.float32]:
        """All parameters that it stands for, flat."""

    def pack(self) -> bytes:
        """Return the packed form."""
        return self.raw

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the packed form, in hex."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def density(self) -> tuple[float, ...]:
        """Share of weights of each layer that are not zero."""
        return self.layout.density(self.values != 0)

    def flips(self, before: Self) -> None:
        """Return None: a message has no bits that flip."""
        return None  # noqa: RET501


@dataclass(frozen=True)
class Model(Sent):
    """All parameters, as numbers of one kind, ``<f4`` or ``<f2``; raises ValueError if there are more or fewer.

    ``changes`` is the payload of what changed since the message ``before``; both are None if only the whole is known.
    """

    number: str = "<f4"
    before: bytes | None = field(default=None, compare=False)
    changes: bytes | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(self.raw) != self.layout.total * np.dtype(self.number).itemsize:
            raise ValueError("wrong length")

    @property
    def values(self) -> NDArray[np.float32]:
        """All parameters, flat; an array of its own."""
        return np.frombuffer(self.raw, self.number).astype(np.float32)


@dataclass(frozen=True)
class SparseModel(Sent):
    """A packed mask over all parameters, then the float32 values of the kept ones; raises ValueError if it is not."""

    def __post_init__(self) -> None:
        n = self.layout.total
        packed = (n + 7) // 8
        if len(self.raw) < packed or len(self.raw) != packed + 4 * int(self.mask.sum()):
            raise ValueError("wrong length")
        if np.unpackbits(np.frombuffer(self.raw, np.uint8, packed))[n:].any():
            raise ValueError("wrong padding")

    @classmethod
    def of(cls, mask: NDArray[np.bool_], values: NDArray[np.float32], layout: Layout) -> Self:
        """Return the message of a mask and all parameters."""
        return cls(np.packbits(mask).tobytes() + values[mask].astype("<f4").tobytes(), layout)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Which parameters are kept, flat."""
        n = self.layout.total
        return np.unpackbits(np.frombuffer(self.raw, np.uint8, (n + 7) // 8), count=n).astype(np.bool_)

    @property
    def values(self) -> NDArray[np.float32]:
        """All parameters, flat; 0 for those that are not kept."""
        values = np.zeros(self.layout.total, np.float32)
        values[self.mask] = np.frombuffer(self.raw, "<f4", offset=(self.layout.total + 7) // 8)
        return values

    @property
    def density(self) -> tuple[float, ...]:
        """Share of kept weights of each layer."""
        return self.layout.density(self.mask)


@dataclass(frozen=True)
class Sample(Sent):
    """A mask over a layout of weights alone, packed; raises ValueError if it is not."""

    def __post_init__(self) -> None:
        n = self.layout.total
        if len(self.raw) != (n + 7) // 8 or np.unpackbits(np.frombuffer(self.raw, np.uint8))[n:].any():
            raise ValueError("wrong length or padding")

    @classmethod
    def of(cls, mask: NDArray[np.bool_], layout: Layout) -> Self:
        """Return the message of a flat mask."""
        return cls(np.packbits(mask).tobytes(), layout)

    @property
    def values(self) -> NDArray[np.float32]:
        """All bits, flat, as 0 and 1."""
        return self.mask.astype(np.float32)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Which weights are kept, flat."""
        return np.unpackbits(np.frombuffer(self.raw, np.uint8), count=self.layout.total).astype(np.bool_)


@dataclass(frozen=True)
class Estimate(Sent):
    """A mask that was drawn from probabilities, and what its receivers then guess that these are.

    Packed: the mask, then for each weight the guess in units of 2**-16, ``<u2``. Raises ValueError if it is not that.
    ``changes`` is the payload of what was drawn since the message ``before``; None if only the whole is known.
    """

    before: bytes | None = field(default=None, compare=False)
    changes: bytes | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        n = self.layout.total
        packed = (n + 7) // 8
        if len(self.raw) != packed + 2 * n or np.unpackbits(np.frombuffer(self.raw, np.uint8, packed))[n:].any():
            raise ValueError("wrong length or padding")
        guess = self.guess
        if n and (guess.min() < SURE or guess.max() > (1 << 16) - SURE):
            raise ValueError("a guess that is too sure")

    @classmethod
    def of(cls, mask: NDArray[np.bool_], guess: NDArray[np.int64], layout: Layout) -> Self:
        """Return the message of a flat mask and of guesses, which are clipped so that all can still be drawn."""
        guess = guess.clip(SURE, (1 << 16) - SURE)
        return cls(np.packbits(mask).tobytes() + guess.astype("<u2").tobytes(), layout)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Which weights are kept, flat."""
        n = self.layout.total
        return np.unpackbits(np.frombuffer(self.raw, np.uint8, (n + 7) // 8), count=n).astype(np.bool_)

    @property
    def guess(self) -> NDArray[np.int64]:
        """The guessed probabilities, flat, in units of 2**-16."""
        return np.frombuffer(self.raw, "<u2", offset=(self.layout.total + 7) // 8).astype(np.int64)

    @property
    def values(self) -> NDArray[np.float32]:
        """All bits, flat, as 0 and 1."""
        return self.mask.astype(np.float32)


# --- codings --------------------------------------------------------------------------------------------------------

S = TypeVar("S", bound=Sent)


@dataclass(frozen=True)
class Link(Generic[S]):
    """The end of a chain, see ``streams.Chain``: the last message, None before the first."""

    round: int = -1
    depth: int = 0
    message: S | None = None


class WholeCoding(Generic[S]):
    """Messages as they are, each a key frame, see ``streams.Coding``.

    ``read`` makes a message, or raises ValueError; ``largest`` is the most bytes of a payload.
    """

    def __init__(self, codec: int, read: Callable[[bytes], S], largest: int) -> None:
        self.largest = max(largest, wire.MAX_CONTROL)  # hellos are payloads as well
        self._codec, self._read = codec, read

    def first(self, peer: int, ones: Sequence[int]) -> Link[S]:
        """Return the chain that has nothing."""
        return Link()

    def after(self, chain: Link[S], message: S, round_: int) -> Link[S]:
        """Return the chain that ends with a message; no message builds on it."""
        return Link(round_, 0, message)

    def last(self, chain: Link[S]) -> S:
        """Return the last message."""
        assert chain.message is not None  # noqa: S101  (asked only of a chain that has one)
        return chain.message

    def encode(self, message: S, chain: Link[S]) -> tuple[int, bytes]:
        """Return the wire id, and the packed form."""
        return self._codec, message.raw

    def decode(self, header: Header, payload: bytes, sender: Hello, chain: Link[S]) -> S:
        """Read a message; raises Refused if it is of another codec, not a message, or damaged."""
        try:
            message = self._message(header.codec, payload, chain)
        except ValueError:
            raise Refused(Refusal.CORRUPT) from None
        if not wire.is_of(header, message.raw):
            raise Refused(Refusal.CORRUPT)
        return message

    def _message(self, codec: int, payload: bytes, chain: Link[S]) -> S:
        if codec != self._codec:
            raise Refused(Refusal.UNKNOWN_CODEC)
        return self._read(payload)

    def unpack(self, packed: bytes) -> S:
        """Read a message's packed form; raises ValueError if it is not one."""
        return self._read(packed)


class BodyCoding(WholeCoding[Model]):
    """Models of which the first ``body`` parameters are sent, as float32; the others are zeros."""

    def __init__(self, layout: Layout, body: int) -> None:
        super().__init__(BODY, lambda payload: Model(payload + bytes(4 * (layout.total - body)), layout), 4 * body)
        self._body = body

    def encode(self, message: Model, chain: Link[Model]) -> tuple[int, bytes]:
        """Return the wire id, and the body."""
        return BODY, message.raw[: 4 * self._body]

    def unpack(self, packed: bytes) -> Model:
        """Read a message's packed form; raises ValueError if it is not one."""
        if any(packed[4 * self._body :]):
            raise ValueError("more than a body")
        message = self._read(packed[: 4 * self._body])
        if len(packed) != len(message.raw):
            raise ValueError("wrong length")
        return message


class _ChainCoding(WholeCoding[S]):
    """Messages of which each may build on the one before."""

    def after(self, chain: Link[S], message: S, round_: int) -> Link[S]:
        """Return the chain that has one more message."""
        return Link(round_, chain.depth + 1, message)


class RepeatCoding(_ChainCoding[S]):
    """Messages as they are; one that says the same as that before takes no bytes."""

    def encode(self, message: S, chain: Link[S]) -> tuple[int, bytes]:
        """Return the wire id, and nothing if the message is the chain's last, else the whole."""
        if chain.message is not None and chain.message.raw == message.raw:
            return SAME, b""
        return super().encode(message, chain)

    def _message(self, codec: int, payload: bytes, chain: Link[S]) -> S:
        if codec != SAME:
            return super()._message(codec, payload, chain)
        if payload or chain.message is None:
            raise ValueError("nothing to repeat")
        return chain.message


class ChangesCoding(_ChainCoding[Model]):
    """The model that a peer has sent so far, as changes since the message before, or whole if there is none.

    ``count`` parameters change per round, each by a multiple of its layer's scale. A payload holds the multiples, each
    -7 to 7 in four bits; the scales, float32, 0 for a layer without changes; and, range-coded, how many of each layer
    change and which. Both ends know ``first``, the model that all begin with, so the first round's changes are a key
    frame too. Any other key frame, after a loss, a restart or skipped rounds, holds the whole model.
    """

    def __init__(self, first: Model, count: int) -> None:
        super().__init__(FLOAT32, lambda packed: Model(packed, first.layout), len(first.raw))
        self._first, self._count = first, count
        self._bounds = np.array([0, *accumulate(first.layout.lengths)])

    def first(self, peer: int, ones: Sequence[int]) -> Link[Model]:
        """Return the chain of the model that all begin with."""
        return Link(message=self._first)

    def encode(self, message: Model, chain: Link[Model]) -> tuple[int, bytes]:
        """Return the wire id, and the changes if they are those since the chain's last message, else the whole."""
        if message.changes is not None and message.before == self.last(chain).raw:
            return CHANGES, message.changes
        return super().encode(message, chain)

    def changed(self, message: Model, values: NDArray[np.float32]) -> Model:
        """Return the message that moves what was sent towards ``values`` by the ``count`` largest differences."""
        with np.errstate(all="ignore"):
            difference = values - message.values
        kept = np.sort(np.argpartition(np.abs(difference), -self._count)[-self._count :])
        chosen = np.nan_to_num(difference[kept])  # a model that diverges is still a result
        scales = np.zeros(len(self._bounds) - 1, np.float32)
        layers = self._layers(kept)
        np.maximum.at(scales, layers, np.abs(chosen) / np.float32(LEVELS))
        with np.errstate(all="ignore"):
            steps = np.nan_to_num(np.rint(chosen / scales[layers])).clip(-LEVELS, LEVELS).astype(np.int8)
        coder = Encoder()
        for low, high in pairwise(self._bounds.tolist()):
            _code_places(coder, kept[(low <= kept) & (kept < high)] - low, high - low)
        changes = _nibbles(steps) + scales.astype("<f4").tobytes() + _finished(coder)
        return Model(self._added(message, changes), message.layout, before=message.raw, changes=changes)

    def _message(self, codec: int, payload: bytes, chain: Link[Model]) -> Model:
        if codec != CHANGES:
            return super()._message(codec, payload, chain)
        before = self.last(chain)
        return Model(self._added(before, payload), before.layout)

    def _added(self, message: Model, changes: bytes) -> bytes:
        lengths = message.layout.lengths
        half = (self._count + 1) // 2
        fixed = half + 4 * len(lengths)
        if len(changes) < fixed:
            raise ValueError("wrong length")
        steps, coder = _steps(changes[:half], self._count), _decoder(changes[fixed:])
        scales = np.frombuffer(changes, "<f4", len(lengths), half)
        places = zip(self._bounds.tolist(), lengths, strict=False)
        kept = np.concatenate([low + _places(coder, n) for low, n in places])
        layers = self._layers(kept)
        if len(kept) != self._count or scales[np.bincount(layers, minlength=len(lengths)) == 0].any():
            raise ValueError("wrong changes")
        values = message.values
        with np.errstate(all="ignore"):
            values[kept] += steps * scales[layers]
        return values.astype("<f4").tobytes()

    def _layers(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._bounds.searchsorted(places, "right") - 1


def _nibbles(steps: NDArray[np.int8]) -> bytes:
    """Pack multiples from -LEVELS to LEVELS, two to a byte."""
    shifted = np.append(steps + LEVELS, [0] * (len(steps) % 2)).astype(np.uint8)
    return (shifted[::2] << 4 | shifted[1::2]).tobytes()


def _steps(packed: bytes, count: int) -> NDArray[np.int8]:
    """Undo ``_nibbles``; raises ValueError if it cannot have packed that."""
    pairs = np.frombuffer(packed, np.uint8)
    steps = np.stack([pairs >> 4, pairs & 15], axis=1).ravel()
    if steps.max() > 2 * LEVELS or steps[count:].any():
        raise ValueError("wrong multiples")
    return steps[:count].astype(np.int8) - np.int8(LEVELS)


def _code_places(coder: Encoder, places: NDArray[np.int64], n: int) -> None:
    """Code which of ``n`` places are taken, and before that how many."""
    coder.number(len(places), n + 1)
    if len(places):
        coder.rare(places, n, _share(len(places), n))


def _places(coder: Decoder, n: int) -> NDArray[np.int64]:
    """Decode which of ``n`` places are taken; a payload that lies may give more or fewer than it says."""
    count = coder.number(n + 1)
    return coder.rare(n, _share(count, n)) if count else np.zeros(0, np.int64)


def _share(count: int, n: int) -> int:
    return min(max(count * ONE // n, 1), ONE - 1)


def _finished(coder: Encoder) -> bytes:
    """Return what was coded without zeros at its end, which a decoder understands behind any bytes."""
    return coder.finish().rstrip(b"\0")


def _decoder(coded: bytes) -> Decoder:
    """Return a decoder of finished bytes; raises ValueError if zeros were added to them."""
    if coded.endswith(b"\0"):
        raise ValueError("longer than an encoder gives")
    return Decoder(coded)


class SparseCoding(WholeCoding[SparseModel]):
    """Sparse models; each layer keeps as many weights as the sender's hello says, or at most so many with ``fewer``."""

    def __init__(self, layout: Layout, *, fewer: bool = False) -> None:
        n = layout.total
        super().__init__(SPARSE, lambda packed: SparseModel(packed, layout), (n + 7) // 8 + 4 * n)
        self._fewer = fewer

    def decode(self, header: Header, payload: bytes, sender: Hello, chain: Link[SparseModel]) -> SparseModel:
        """Read a message, with all the checks of WholeCoding."""
        message = super().decode(header, payload, sender, chain)
        kept = zip(message.layout.ones(message.mask), sender.ones, strict=True)
        if any(ones > most or (ones < most and not self._fewer) for ones, most in kept):
            raise Refused(Refusal.WRONG_DENSITY)
        return message


class SampleCoding(_ChainCoding[Sample]):
    """Masks that are drawn anew each round, range-coded: in each layer those weights apart that were kept last time.

    Of each such part a payload has how many weights are kept, then which; a key frame has each layer as one part.
    """

    def __init__(self, layout: Layout) -> None:
        most = (layout.total + 7) // 8 + 16 * len(layout.lengths) + 16  # the counts; at least a word
        super().__init__(SAMPLE, lambda packed: Sample(packed, layout), most)
        self._layout = layout

    def encode(self, message: Sample, chain: Link[Sample]) -> tuple[int, bytes]:
        """Return the wire id, and the mask given the one before."""
        coder, mask = Encoder(), message.mask
        for part in self._parts(chain):
            bits = mask[part]
            count = int(bits.sum())
            coder.number(count, len(bits) + 1)
            if 0 < count < len(bits):
                coder.bits(bits, _share(count, len(bits)))
        return SAMPLE, _finished(coder)

    def _message(self, codec: int, payload: bytes, chain: Link[Sample]) -> Sample:
        if codec != SAMPLE:
            raise Refused(Refusal.UNKNOWN_CODEC)
        coder, mask = _decoder(payload), np.zeros(self._layout.total, np.bool_)
        for part in self._parts(chain):
            count = coder.number(len(part) + 1)
            inside = 0 < count < len(part)
            mask[part] = coder.bits(len(part), _share(count, len(part))) if inside else count > 0
        return Sample.of(mask, self._layout)

    def _parts(self, chain: Link[Sample]) -> Iterator[NDArray[np.int64]]:
        """Yield the places of each part."""
        before = None if chain.message is None else chain.message.mask
        for low, high in pairwise(accumulate(self._layout.lengths, initial=0)):
            places = np.arange(low, high)
            yield from [places] if before is None else [places[before[low:high]], places[~before[low:high]]]


class WaveletCoding(WholeCoding[SparseModel]):
    """Some of a model's wavelet coefficients: how many, uint32; their float32 values; which, range-coded."""

    def __init__(self, layout: Layout) -> None:
        n = layout.total
        super().__init__(WAVELETS, lambda packed: SparseModel(packed, layout), 4 + 4 * n + (n + 7) // 8 + 16)
        self._layout = layout

    def encode(self, message: SparseModel, chain: Link[SparseModel]) -> tuple[int, bytes]:
        """Return the wire id, and the coefficients."""
        mask, n = message.mask, self._layout.total
        count, coder = int(mask.sum()), Encoder()
        if 0 < count < n:
            coder.bits(mask, _share(count, n))
        values = message.raw[len(message.raw) - 4 * count :]
        return WAVELETS, np.uint32(count).astype("<u4").tobytes() + values + _finished(coder)

    def _message(self, codec: int, payload: bytes, chain: Link[SparseModel]) -> SparseModel:
        if codec != WAVELETS:
            raise Refused(Refusal.UNKNOWN_CODEC)
        n, count = self._layout.total, int.from_bytes(payload[:4], "little")
        fixed = 4 + 4 * count
        if count > n or len(payload) < fixed:
            raise ValueError("wrong length")
        coder = _decoder(payload[fixed:])
        if 0 < count < n:
            mask = coder.bits(n, _share(count, n)).astype(np.bool_)
        elif len(payload) == fixed:
            mask = np.full(n, count > 0)
        else:
            raise ValueError("nothing to code")
        return SparseModel(np.packbits(mask).tobytes() + payload[4:fixed], self._layout)


class KlmsCoding(_ChainCoding[Estimate]):
    """Masks drawn from the sender's probabilities, each block as the number of one of 64 candidates.

    Both ends draw the same candidates from the guess of the message before, by its digest. The sender takes one at
    random, by how much likelier its own probabilities make it than the guess does (importance sampling). Thereafter
    both guess ``GAIN`` of the way from the old guess to the mask. A payload has a byte for each layer, which gives the
    size of its blocks, and six bits for each block. Both ends know ``first``, the probabilities that all begin with.
    A key frame after a loss, a restart or skipped rounds holds the mask and the guess as they are.
    """

    BITS = 6
    GAIN = 3
    """As a power of two: an eighth."""
    LEAST, SIZES, CHUNK = 3, 10, 1 << 15
    """Blocks have 2**3 to 2**12 weights; candidates of so many weights are drawn at a time, a multiple of all sizes."""
    INFORMATION = 5.0
    """Bits by which a mean block's probabilities may differ from the guess: fewer than its number has."""

    def __init__(self, first: NDArray[np.int64], seed: int, layout: Layout) -> None:
        n = layout.total
        super().__init__(ESTIMATE, lambda packed: Estimate(packed, layout), (n + 7) // 8 + 2 * n)
        self._first, self._seed, self._layout = first, seed, layout

    def first(self, peer: int, ones: Sequence[int]) -> Link[Estimate]:
        """Return the chain of a mask that nobody sends, drawn for this peer from what all begin with."""
        mask = Stream(self._seed, "klms first", peer).shorts(self._layout.total) < self._first
        return Link(message=Estimate.of(mask, self._first, self._layout))

    def encode(self, message: Estimate, chain: Link[Estimate]) -> tuple[int, bytes]:
        """Return the wire id, and the candidates' numbers if they are of the chain's last message, else the whole."""
        if message.changes is not None and message.before == self.last(chain).raw:
            return KLMS, message.changes
        return super().encode(message, chain)

    def drawn(self, before: Estimate, probability: NDArray[np.float64], lot: Stream) -> Estimate:
        """Return the message of a mask that is drawn from probabilities inside (0, 1), flat, by the private ``lot``."""
        guess, bounds = before.guess / (1 << 16), [*pairwise(accumulate(self._layout.lengths, initial=0))]
        more = np.log(probability / guess) - np.log((1 - probability) / (1 - guess))
        nats = probability * more + np.log((1 - probability) / (1 - guess))
        sizes = bytes(self._size(float(nats[low:high].mean())) for low, high in bounds)
        chosen = []
        for blocks, candidates in self._candidates(before, sizes):
            padded = np.zeros(candidates.shape[1:], np.float32)
            padded.reshape(-1)[: blocks.stop - blocks.start] = more[blocks]
            gained = np.einsum("cbw,bw->cb", candidates, padded)
            chosen.append((gained + _gumbel(lot.uniform(*gained.shape))).argmax(0))
        numbers = np.concatenate(chosen).astype(np.uint8)
        changes = sizes + np.packbits(np.unpackbits(numbers[:, None], axis=1)[:, -self.BITS :]).tobytes()
        found = self._added(before, changes)
        return Estimate(found.raw, found.layout, before=before.raw, changes=changes)

    def _size(self, nats: float) -> int:
        """Return how many times blocks of 2**LEAST are doubled where a weight has so much information."""
        most = self.INFORMATION * log(2) / max(nats, 1e-9)
        return min(max(int(log2(max(most, 1))) - self.LEAST, 0), self.SIZES - 1)

    def _message(self, codec: int, payload: bytes, chain: Link[Estimate]) -> Estimate:
        return self._added(self.last(chain), payload) if codec == KLMS else super()._message(codec, payload, chain)

    def _added(self, before: Estimate, changes: bytes) -> Estimate:
        lengths = self._layout.lengths
        sizes, packed = changes[: len(lengths)], changes[len(lengths) :]
        if len(sizes) < len(lengths) or max(sizes) >= self.SIZES:
            raise ValueError("wrong sizes of blocks")
        blocks = sum(-(-n >> self.LEAST + size) for n, size in zip(lengths, sizes, strict=True))
        bits = np.unpackbits(np.frombuffer(packed, np.uint8))
        if len(packed) != -(-blocks * self.BITS // 8) or bits[blocks * self.BITS :].any():
            raise ValueError("wrong length or padding")
        numbers = bits[: blocks * self.BITS].reshape(-1, self.BITS) @ (1 << np.arange(self.BITS)[::-1])
        mask, done = np.zeros(self._layout.total, np.bool_), 0
        for places, candidates in self._candidates(before, sizes):
            count = candidates.shape[1]
            found = candidates[numbers[done : done + count], np.arange(count)]
            mask[places], done = found.reshape(-1)[: places.stop - places.start], done + count
        guess, half = before.guess, 1 << self.GAIN - 1
        return Estimate.of(mask, guess + ((mask * (1 << 16) - guess + half) >> self.GAIN), self._layout)

    def _candidates(self, before: Estimate, sizes: bytes) -> Iterator[tuple[slice, NDArray[np.bool_]]]:
        """Yield places of one layer and their candidates (64, blocks, weights of a block), padded with zeros."""
        guess, start = before.guess, 0
        lot = Stream(self._seed, "klms", before.digest)
        for n, size in zip(self._layout.lengths, sizes, strict=True):
            for low in range(start, start + n, self.CHUNK):
                places = slice(low, min(low + self.CHUNK, start + n))
                width = 1 << self.LEAST + size
                padded = np.zeros(-(-(places.stop - low) // width) * width, np.int64)
                padded[: places.stop - low] = guess[places]
                yield places, (lot.shorts(1 << self.BITS, len(padded)) < padded).reshape(1 << self.BITS, -1, width)
            start += n


def _gumbel(uniform: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what is added to logarithms of weights so that the largest is a draw by these weights."""
    gumbel: NDArray[np.float64] = -np.log(-np.log(uniform.astype(np.float64) + 2.0**-25))
    return gumbel
