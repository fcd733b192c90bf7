"""How a mask becomes a payload: one registry by wire id, every encoder with its decoder. All are lossless.

``bitpack`` spends one bit per weight. ``range`` spends the entropy of each layer's density: a key frame that needs
nothing known. ``delta`` names the weights that flipped since the mask before. ``context`` looks at the last eight
masks: how often and how lately a weight flipped, and whether it swings to and fro, tells how likely it flips now.
Both also use the forecast that the run's seed gives; a key frame of theirs builds on nothing else. ``auto`` sends the
shortest.

Probabilities are integers, 2**-24 each, worked out from counts that sender and receiver both have, so that any two
machines agree. The entropy coder is the range coder of the library ``constriction``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import constriction
import numpy as np
from numpy.typing import NDArray

from dslth.masks import BitMask

__all__ = ["AUTO", "BITPACK", "BY_ID", "BY_NAME", "CONTEXT", "DELTA", "RANGE", "Codec", "History", "encode"]

Bits = NDArray[np.uint8]
Indices = NDArray[np.int64]

ONE = 1 << 24
"""The unit of probabilities; also the largest alphabet that the range coder takes."""
CROWD = 15
"""Surprises in a block from which on their number is coded apart."""


# --- the range coder ------------------------------------------------------------------------------------------------

_model = constriction.stream.model
_bernoulli = _model.Bernoulli(perfect=False)


class Encoder:
    """Codes bits, counts and rare positions with integer probabilities."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def bits(self, bits: Bits, probabilities: Indices) -> None:
        """Code each bit given its probability to be 1, in units of 2**-24."""
        if len(bits):
            self._coder.encode(bits.astype(np.int32), _bernoulli, probabilities / ONE)

    def number(self, value: int, size: int) -> None:
        """Code an integer in 0 .. size-1, all equally likely."""
        while size > ONE:
            value, low = divmod(value, ONE)
            self._coder.encode(np.array([low], np.int32), _model.Uniform(ONE))
            size = -(-size // ONE)
        if size > 1:
            self._coder.encode(np.array([value], np.int32), _model.Uniform(size))

    def rare(self, positions: Indices, n: int, p: int) -> None:
        """Code which of 0 .. n-1 are surprises, each with probability ``p`` / 2**24.

        Takes as many symbols as there are surprises rather than positions: their number in each block, block by block
        (binomial), then each one's place in its block.
        """
        if n == 0:
            return
        block, model = _blocks(p)
        counts = np.bincount(positions // block, minlength=-(-n // block))
        self._coder.encode(np.minimum(counts, CROWD).astype(np.int32), model)
        for count in counts[counts >= CROWD]:
            self.number(int(count) - CROWD, block)
        if block > 1 and len(positions):
            self._coder.encode((positions % block).astype(np.int32), _model.Uniform(block))

    def finish(self) -> bytes:
        """Give the shortest bytes that decode to what was coded, endless zeros understood behind them."""
        words = self._coder.get_compressed()
        settled, (low, width) = self._coder.pos()
        if low + width > 1 << 64:  # a carry is open: leave it to the library
            return bytes(words.astype(">u4").tobytes())
        zeros = next(k for k in range(64, -1, -1) if _round_up(low, k) < min(low + width, 1 << 64))
        tail = _round_up(low, zeros).to_bytes(8, "big")
        return bytes(words[:settled].astype(">u4").tobytes() + tail).rstrip(b"\0")


def _round_up(value: int, zeros: int) -> int:
    return -(-value >> zeros) << zeros


class Decoder:
    """Undoes an Encoder call by call; ValueError where the bytes cannot have come from one."""

    def __init__(self, payload: bytes) -> None:
        words = np.frombuffer(payload + bytes(-len(payload) % 4 + 8), ">u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)

    def _decode(self, *model: object) -> NDArray[np.int32]:
        try:
            symbols: NDArray[np.int32] = self._coder.decode(*model)
        except AssertionError:  # how the library says that the data are not from this model
            raise ValueError("not what an encoder gives") from None
        return symbols

    def bits(self, probabilities: Indices) -> Bits:
        """Decode a bit for each probability."""
        if not len(probabilities):
            return np.zeros(0, np.uint8)
        return self._decode(_bernoulli, probabilities / ONE).astype(np.uint8)

    def number(self, size: int) -> int:
        """Decode an integer in 0 .. size-1."""
        if size > ONE:
            low = int(self._decode(_model.Uniform(ONE), 1)[0])
            return self.number(-(-size // ONE)) * ONE + low
        return int(self._decode(_model.Uniform(size), 1)[0]) if size > 1 else 0

    def rare(self, n: int, p: int) -> Indices:
        """Decode which of 0 .. n-1 are surprises, in ascending order."""
        if n == 0:
            return np.zeros(0, np.int64)
        block, model = _blocks(p)
        counts = self._decode(model, -(-n // block)).astype(np.int64)
        for crowded in np.flatnonzero(counts == CROWD):
            counts[crowded] += self.number(block)
        if counts.max() > block:
            raise ValueError("more surprises than places")
        starts = np.repeat(np.arange(len(counts)) * block, counts)
        if block > 1 and len(starts):
            starts += self._decode(_model.Uniform(block), len(starts))
        if len(starts) and (starts[-1] >= n or (np.diff(starts) <= 0).any()):
            raise ValueError("surprises out of order")
        return starts


def _blocks(p: int) -> tuple[int, object]:
    """Choose blocks that hold about a tenth of a surprise each, and the distribution of their number in one."""
    block = 1 << max(0, (ONE // (8 * p)).bit_length() - 1)
    chances = [1.0]  # binomial, up to a factor; by products and quotients alone, which IEEE 754 rounds alike everywhere
    for k in range(1, CROWD + 1):
        chances.append(chances[-1] * p * max(0, block - k + 1) / ((ONE - p) * k))
    weights = np.array([max(1, int(chance * ONE)) for chance in chances], np.float64)  # never 0: all can be decoded
    return block, _model.Categorical(weights / weights.sum(), perfect=False)


# --- what both sides know -------------------------------------------------------------------------------------------

_EDGES = np.array([0.01, 0.03, 0.06, 0.1, 0.15, 0.22, 0.35], np.float32)
"""Distances from the threshold, as shares of the largest first score, that part weights into groups."""
GROUPS = len(_EDGES) + 1


class Forecast:
    """What the run's seed tells of a peer's masks: its mask before any learning, and which weights will waver.

    Every peer's first scores follow from the seed, so its neighbours know them. A weight whose first effective score
    lies near the threshold flips far sooner than one that lies far from it; so each layer's weights are sorted into
    eight groups by that distance, and each group has its own probabilities.

    ``magnitudes`` are those of the first effective scores, a flat float32 array a layer, exact on any machine; None
    where nothing is known. ``ones`` is the number of weights that the peer keeps in each layer.
    """

    def __init__(self, magnitudes: Sequence[NDArray[np.float32]], ones: Sequence[int]) -> None:
        kept, self._orders, self._ends = [], list[Indices](), list[Indices]()
        for layer, count in zip(magnitudes, ones, strict=True):
            first = min(len(layer) - count, len(layer) - 1)
            threshold = np.partition(layer, first)[first] if len(layer) else np.float32(0)
            bits = layer > threshold
            tied = np.flatnonzero(layer == threshold)
            bits[tied[len(tied) - (count - np.count_nonzero(bits)) :]] = True
            group = np.searchsorted(_EDGES, np.abs(layer - threshold), side="right").astype(np.uint8)
            kept.append(bits)
            self._orders.append(np.argsort(group, kind="stable").astype(np.int32))
            self._ends.append(np.cumsum(np.bincount(group, minlength=GROUPS))[:-1])
        self.mask = BitMask.from_arrays(kept)

    def split(self, mask: BitMask) -> list[Bits]:
        """Give the bits of each group of each layer."""
        grouped = zip(mask.arrays(), self._orders, self._ends, strict=True)
        return [group for bits, order, ends in grouped for group in np.split(bits[order], ends)]

    def join(self, groups: Sequence[Bits]) -> BitMask:
        """Undo ``split``."""
        layers = []
        for number, order in enumerate(self._orders):
            layer = np.empty(len(order), np.bool_)
            layer[order] = np.concatenate(groups[GROUPS * number : GROUPS * (number + 1)])
            layers.append(layer)
        return BitMask.from_arrays(layers)


_FLIPS = np.array([h ^ (h >> 1) for h in range(256)]) & 0x7F
"""By history byte (the last eight masks' bits of a weight, newest lowest): in which of seven steps it flipped."""
_CONTEXT = np.array([(f & 3) * 6 + min(5, (f >> 2).bit_count()) for f in map(int, _FLIPS)], np.uint8)
"""The context of a history byte: whether the last two steps were flips, and how many of the five before them (0 .. 5).

Context 0 is *quiet*: no flip in eight masks. Nearly all weights are.
"""
_CONTEXTS = 24
_KIND = np.array([0, *[1 + c // 6 for c in range(1, _CONTEXTS)]])
"""Contexts of a kind, quiet or alike in their last two steps, speak for each other while one has little to tell."""
_SCALE = 16
_PRIOR = np.array([[8, 320], [32, 320], [64, 320], [64, 320], [64, 320]])
"""Flips and weights of each kind met before the first mask."""


class History:
    """What a sender's forecast and last masks tell of its next; sender and receiver hold the same.

    ``depth`` is the number of masks it has seen, ``round`` that of the last one; it begins with the forecast's.
    """

    def __init__(self, forecast: Forecast, mask: BitMask | None = None, round_: int = -1) -> None:
        self.forecast, self.round, self.depth = forecast, round_, 0
        self.mask = forecast.mask if mask is None else mask
        self._bytes: list[Bits] | None = None
        self._active: list[tuple[Indices, Bits]] | None = None
        # flips and weights met in each context of each group of each layer, halved each round
        self._met = np.zeros((len(self.mask.layers), GROUPS, _CONTEXTS, 2), np.int64)
        self._pace = ONE  # flips in the last round for each that was expected, in units of 2**-24

    @property
    def bytes(self) -> list[Bits]:
        """The last eight bits of each weight, a byte each, group by group; the newest bit is the lowest."""
        if self._bytes is None:  # the first mask stands for all before it
            self._bytes = [np.negative(group, dtype=np.uint8) for group in self.forecast.split(self.mask)]
        return self._bytes

    @property
    def active(self) -> list[tuple[Indices, Bits]]:
        """The weights that flipped within eight masks, by index in their group, and their contexts; group by group."""
        if self._active is None:
            found = [np.flatnonzero((h + np.uint8(1)) > 1) for h in self.bytes]
            self._active = [(index, _CONTEXT[h[index]]) for index, h in zip(found, self.bytes, strict=True)]
        return self._active

    def probabilities(self) -> Indices:
        """Give the probability of a flip in each context of each group (layers * groups, 24), in units of 2**-24.

        What was expected is scaled by how the last round turned out: early on, each round has fewer flips.
        """
        clipped: Indices = np.clip((self._expected() >> 12) * (self._pace >> 12), ONE >> 17, ONE - (ONE >> 6))
        return clipped

    def _expected(self) -> Indices:
        """Give the share of flips by the counts of the layer's group, in the shape and unit of ``probabilities``.

        While those are few, by those of all layers' like groups; while those are few, by all groups' counts of this
        context, and then of its kind.
        """
        kind = _PRIOR.copy()
        np.add.at(kind, _KIND, self._met.sum((0, 1)))
        table = (kind[:, 0] * ONE // kind[:, 1])[_KIND]
        for few, counts in ((2, self._met.sum((0, 1))), (8, self._met.sum(0)), (8, self._met)):
            table = (counts[..., 0] * ONE + few * _SCALE * table) // (counts[..., 1] + few * _SCALE)
        flat: Indices = table.reshape(-1, _CONTEXTS)
        return flat

    def advanced(self, mask: BitMask, round_: int) -> "History":
        """Give the history that has seen one more mask."""
        after = History(self.forecast, mask, round_)
        after.depth = self.depth + 1
        after._bytes = []
        now = np.zeros((len(self.bytes), _CONTEXTS, 2), np.int64)
        split = self.forecast.split(mask)
        for met, h, bits, (index, contexts) in zip(now, self.bytes, split, self.active, strict=True):
            flips = bits ^ (h & 1)
            met[:, 0] = np.bincount(contexts[flips[index] == 1], minlength=_CONTEXTS)
            met[:, 1] = np.bincount(contexts, minlength=_CONTEXTS)
            met[0] = np.count_nonzero(flips) - met[:, 0].sum(), len(h) - len(index)
            after._bytes.append((h << np.uint8(1)) | bits)
        after._met = self._met // 2 + _SCALE * now.reshape(self._met.shape)
        if self.depth:
            expected = int((self._expected() * now[..., 1]).sum())
            after._pace = min(4 * ONE, max(ONE // 4, int(now[..., 0].sum()) * ONE * ONE // max(1, expected)))
        return after


# --- the codecs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Codec:
    """A pair of inverse functions; ``builds_on`` tells whether they look at the history.

    ``encode(mask, history)`` gives the payload; ``decode(payload, history)`` the mask of layers of the history's sizes,
    or ValueError where no encoder gives that payload.
    """

    wire_id: int
    name: str
    builds_on: bool
    encode: Callable[[BitMask, History], bytes]
    decode: Callable[[bytes, History], BitMask]


def _bitpack_encode(mask: BitMask, history: History) -> bytes:
    return mask.pack()


def _bitpack_decode(payload: bytes, history: History) -> BitMask:
    return BitMask.unpack(payload, history.mask.sizes)


def _range_encode(mask: BitMask, history: History) -> bytes:
    coder = Encoder()
    for ones, layer in zip(mask.ones, mask.arrays(), strict=True):
        n = len(layer)
        coder.number(ones, n + 1)
        if 0 < ones < n:
            coder.bits(layer, np.full(n, _share(ones, n)))
    return coder.finish()


def _range_decode(payload: bytes, history: History) -> BitMask:
    coder, layers = Decoder(payload), []
    for n in history.mask.sizes:
        ones = coder.number(n + 1)
        layer = coder.bits(np.full(n, _share(ones, n))) if 0 < ones < n else np.full(n, ones > 0, np.uint8)
        layers.append(layer.astype(bool))
    return BitMask.from_arrays(layers)


def _share(k: int, n: int) -> int:
    return min(max(k * ONE // n, 1), ONE - 1)


def _delta_encode(mask: BitMask, history: History) -> bytes:
    coder = Encoder()
    for flips in history.forecast.split(mask ^ history.mask):
        index = np.flatnonzero(flips)
        coder.number(len(index), len(flips) + 1)
        if len(index):
            coder.rare(index, len(flips), _share(len(index), len(flips)))
    return coder.finish()


def _delta_decode(payload: bytes, history: History) -> BitMask:
    coder, groups = Decoder(payload), []
    for group in history.forecast.split(history.mask):
        count = coder.number(len(group) + 1)
        if count:
            group[coder.rare(len(group), _share(count, len(group)))] ^= 1
        groups.append(group)
    return history.forecast.join(groups)


def _context_encode(mask: BitMask, history: History) -> bytes:
    coder = Encoder()
    known = zip(history.forecast.split(mask), history.bytes, history.active, history.probabilities(), strict=True)
    for group, h, (index, contexts), table in known:
        flips: Bits = group ^ (h & np.uint8(1))
        coder.bits(flips[index], table[contexts])
        flips[index] = 0
        quiet = np.flatnonzero(flips)
        coder.rare(quiet - np.searchsorted(index, quiet), len(h) - len(index), int(table[0]))
    return coder.finish()


def _context_decode(payload: bytes, history: History) -> BitMask:
    coder, groups = Decoder(payload), []
    for h, (index, contexts), table in zip(history.bytes, history.active, history.probabilities(), strict=True):
        group = h & np.uint8(1)
        group[index] ^= coder.bits(table[contexts])
        ranks = coder.rare(len(h) - len(index), int(table[0]))
        group[ranks + np.searchsorted(index - np.arange(len(index)), ranks, side="right")] ^= 1
        groups.append(group)
    return history.forecast.join(groups)


BITPACK = Codec(0, "bitpack", False, _bitpack_encode, _bitpack_decode)
RANGE = Codec(1, "range", False, _range_encode, _range_decode)
DELTA = Codec(2, "delta", True, _delta_encode, _delta_decode)
CONTEXT = Codec(3, "context", True, _context_encode, _context_decode)
_CODECS = (BITPACK, RANGE, DELTA, CONTEXT)
AUTO = "auto"

BY_ID = {codec.wire_id: codec for codec in _CODECS}
BY_NAME = {codec.name: codec for codec in _CODECS}
if not len(BY_ID) == len(BY_NAME) == len(_CODECS):
    raise AssertionError("two codecs share a wire id or a name")
if any(a.wire_id >= b.wire_id for a, b in pairwise(_CODECS)):
    raise AssertionError("the registry is in the order of its wire ids")


def encode(mask: BitMask, history: History, name: str) -> tuple[Codec, bytes]:
    """Encode with the codec of this name, or for ``auto`` with that which gives the shortest payload.

    ``auto`` never sends more than ``bitpack`` would.
    """
    if name != AUTO:
        return BY_NAME[name], BY_NAME[name].encode(mask, history)
    usable = [codec for codec in _CODECS if codec.builds_on or history.depth == 0 or codec is BITPACK]
    coded = [(codec, codec.encode(mask, history)) for codec in usable]
    return min(coded, key=lambda pair: (len(pair[1]), pair[0].wire_id))
