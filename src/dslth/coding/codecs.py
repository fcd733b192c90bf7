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

from dslth.masks import BitMask, packed_size

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
        """Return the shortest bytes that decode to what was coded, endless zeros understood behind them."""
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
    eight groups by that distance, and each group has its own probabilities. A weight's *place* is its number in that
    order: layer by layer, group by group, by flat index.

    ``magnitudes`` are those of the first effective scores, a flat float32 array a layer, exact on any machine;
    ``ones`` is the number of weights that the peer keeps in each layer.
    """

    def __init__(self, magnitudes: Sequence[NDArray[np.float32]], ones: Sequence[int]) -> None:
        kept, bits, counts, start = [], list[Indices](), list[Indices](), 0
        for layer, count in zip(magnitudes, ones, strict=True):
            first = min(len(layer) - count, len(layer) - 1)
            threshold = np.partition(layer, first)[first] if len(layer) else np.float32(0)
            mask = layer > threshold
            tied = np.flatnonzero(layer == threshold)
            mask[tied[len(tied) - (count - np.count_nonzero(mask)) :]] = True
            kept.append(mask)
            group = np.searchsorted(_EDGES, np.abs(layer - threshold), side="right").astype(np.uint8)
            bits.append(start + np.argsort(group, kind="stable"))
            counts.append(np.bincount(group, minlength=GROUPS))
            start += 8 * packed_size([len(layer)])
        self.mask = BitMask.from_arrays(kept)
        self.layers, self.sizes = len(kept), np.concatenate(counts)
        self.bounds: Indices = np.concatenate([[0], np.cumsum(self.sizes)])
        self._bits: NDArray[np.int32] = np.concatenate(bits).astype(np.int32)  # of a place, in the packed mask
        self._places = np.zeros(start, np.int32)
        self._places[self._bits] = np.arange(len(self._bits), dtype=np.int32)

    def differences(self, a: BitMask, b: BitMask) -> Indices:
        """Return the places, ascending, of the weights in which two masks differ."""
        changed = np.frombuffer(a.pack(), np.uint8) ^ np.frombuffer(b.pack(), np.uint8)
        octets = np.flatnonzero(changed)
        octet, bit = np.nonzero(np.unpackbits(changed[octets]).reshape(-1, 8))
        places: Indices = np.sort(self._places[8 * octets[octet] + bit]).astype(np.int64)
        return places

    def flipped(self, mask: BitMask, places: Indices) -> BitMask:
        """Return a mask that differs from another in these places, each named once."""
        packed, bits = np.frombuffer(mask.pack(), np.uint8).copy(), self._bits[places]
        np.bitwise_xor.at(packed, bits >> 3, (128 >> (bits & 7)).astype(np.uint8))
        return BitMask.unpack(packed.tobytes(), mask.sizes)


_CONTEXT = np.array([(f & 3) * 6 + min(5, (f >> 2).bit_count()) for f in range(128)], np.uint8)
"""The context of a weight by the last seven steps in which it flipped or not, the newest in the lowest bit: whether the
last two were flips, and how many of the five before them (0 .. 5).

Context 0 is *quiet*: no flip in seven steps. Nearly all weights are.
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
        # the places of weights that are not quiet, ascending, and the steps in which they flipped
        self.active: Indices = np.zeros(0, np.int64)
        self._steps = np.zeros(0, np.uint8)
        # flips and weights met in each context of each group of each layer, halved each round
        self._met = np.zeros((forecast.layers, GROUPS, _CONTEXTS, 2), np.int64)
        self._pace = ONE  # flips in the last round for each that was expected, in units of 2**-24

    @property
    def contexts(self) -> Indices:
        """The context of each active weight among those of all groups: 24 times the group's number, and its own."""
        grouped: Indices = self._group_of(self.active) * _CONTEXTS + _CONTEXT[self._steps]
        return grouped

    def _group_of(self, places: Indices) -> Indices:
        ends = np.searchsorted(places, self.forecast.bounds)
        return np.repeat(np.arange(len(ends) - 1), np.diff(ends))

    def parted(self, flips: Indices) -> tuple[NDArray[np.bool_], Indices]:
        """Tell which active weights are among flips (places in ascending order), and give the flips that are not."""
        where = np.searchsorted(flips, self.active)
        hit = np.append(flips, -1)[where] == self.active
        surprise = np.ones(len(flips), np.bool_)
        surprise[where[hit]] = False
        return hit, flips[surprise]

    def quiet(self, group: int) -> tuple[int, Indices]:
        """Return the number of quiet weights in a group, and before how many of them each active one stands."""
        low, high = self.forecast.bounds[group : group + 2]
        active = self.active[slice(*np.searchsorted(self.active, (low, high)))] - low
        return int(high - low) - len(active), active - np.arange(len(active))

    def probabilities(self) -> Indices:
        """Return the probability of a flip in each context of each group (layers * groups, 24), in units of 2**-24.

        What was expected is scaled by how the last round turned out: early on, each round has fewer flips.
        """
        clipped: Indices = np.clip((self._expected() >> 12) * (self._pace >> 12), ONE >> 17, ONE - (ONE >> 6))
        return clipped

    def _expected(self) -> Indices:
        """Return the share of flips by the counts of the layer's group, in the shape and unit of ``probabilities``.

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
        """Return the history that has seen one more mask."""
        flips, after = self.forecast.differences(self.mask, mask), History(self.forecast, mask, round_)
        after.depth = self.depth + 1
        hit, surprises = self.parted(flips)
        places = np.concatenate([self.active, surprises])
        steps = np.concatenate([(self._steps << np.uint8(1)) & np.uint8(127) | hit, np.ones(len(surprises), np.uint8)])
        order = np.argsort(places, kind="stable")  # two sorted runs: merged in one pass
        order = order[steps[order] > 0]
        after.active, after._steps = places[order], steps[order]

        contexts, shape = self.contexts, (len(self.forecast.sizes), _CONTEXTS)
        met = [np.bincount(which, minlength=shape[0] * shape[1]) for which in (contexts[hit], contexts)]
        now = np.stack(met, axis=1).reshape(*shape, 2)
        now[:, 0, 0] = np.bincount(self._group_of(flips), minlength=shape[0]) - now[..., 0].sum(1)
        now[:, 0, 1] = self.forecast.sizes - now[..., 1].sum(1)
        after._met = self._met // 2 + _SCALE * now.reshape(self._met.shape)
        if self.depth:
            expected = int((self._expected() * now[..., 1]).sum())
            after._pace = min(4 * ONE, max(ONE // 4, len(flips) * ONE * ONE // max(1, expected)))
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
    coder, forecast = Encoder(), history.forecast
    flips = forecast.differences(history.mask, mask)
    for low, high in pairwise(forecast.bounds.tolist()):
        inside = flips[slice(*np.searchsorted(flips, (low, high)))] - low
        coder.number(len(inside), high - low + 1)
        if len(inside):
            coder.rare(inside, high - low, _share(len(inside), high - low))
    return coder.finish()


def _delta_decode(payload: bytes, history: History) -> BitMask:
    coder, flips = Decoder(payload), []
    for low, high in pairwise(history.forecast.bounds.tolist()):
        if count := coder.number(high - low + 1):
            flips.append(low + coder.rare(high - low, _share(count, high - low)))
    return history.forecast.flipped(history.mask, np.concatenate(flips)) if flips else history.mask


def _context_encode(mask: BitMask, history: History) -> bytes:
    coder, table = Encoder(), history.probabilities()
    flips = history.forecast.differences(history.mask, mask)
    hit, surprises = history.parted(flips)
    coder.bits(hit.astype(np.uint8), table.ravel()[history.contexts])
    places = surprises - np.searchsorted(history.active, surprises)
    for group, low in enumerate(
        history.forecast.bounds[:-1] - np.searchsorted(history.active, history.forecast.bounds[:-1])
    ):
        quiet, _ = history.quiet(group)
        coder.rare(places[slice(*np.searchsorted(places, (low, low + quiet)))] - low, quiet, int(table[group, 0]))
    return coder.finish()


def _context_decode(payload: bytes, history: History) -> BitMask:
    coder, table = Decoder(payload), history.probabilities()
    flips = [history.active[coder.bits(table.ravel()[history.contexts]) == 1]]
    for group, low in enumerate(history.forecast.bounds[:-1].tolist()):
        quiet, before = history.quiet(group)
        ranks = coder.rare(quiet, int(table[group, 0]))
        flips.append(low + ranks + np.searchsorted(before, ranks, side="right"))
    return history.forecast.flipped(history.mask, np.concatenate(flips))


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
