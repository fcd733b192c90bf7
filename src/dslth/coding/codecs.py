"""How a mask becomes a payload: one registry by wire id, every encoder with its decoder. All are lossless.

``bitpack`` spends one bit per weight. ``range`` spends the entropy of each layer's density: a key frame that needs
nothing known. ``delta`` names the weights that flipped since the mask before. ``context`` looks at the last eight
masks: how often and how lately a weight flipped, and whether it swings to and fro, tells how likely it flips now.
Both also use the forecast that the run's seed gives; a key frame of theirs builds on nothing else. ``auto`` sends the
shortest.

What is known on both sides is in ``history.py`` and ``forecast.py``, the entropy coder in ``rangecoder.py``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import log2

import numpy as np

from dslth.coding.forecast import Forecast
from dslth.coding.history import History
from dslth.coding.rangecoder import ONE, Decoder, Encoder, Indices, block_size
from dslth.config import CodecName, plugins
from dslth.errors import ConfigError
from dslth.masks import BitMask

__all__ = ["BITPACK", "BY_ID", "BY_NAME", "CONTEXT", "DELTA", "RANGE", "Codec", "by_id", "delta_at_least", "encode"]

PLUGINS = range(128, 256)
"""Wire ids of codecs that plugins bring."""


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
            coder.bits(layer, _share(ones, n))
    return coder.finish()


def _range_decode(payload: bytes, history: History) -> BitMask:
    coder, layers = Decoder(payload), []
    for n in history.mask.sizes:
        ones = coder.number(n + 1)
        layer = coder.bits(n, _share(ones, n)) if 0 < ones < n else np.full(n, ones > 0, np.uint8)
        layers.append(layer.astype(bool))
    return BitMask.from_arrays(layers)


def _share(k: int, n: int) -> int:
    return min(max(k * ONE // n, 1), ONE - 1)


def _delta_encode(mask: BitMask, history: History) -> bytes:
    coder = Encoder()
    for inside, n in _grouped(history.flips(history.step(mask)), history.forecast):
        coder.number(len(inside), n + 1)
        if len(inside):
            coder.rare(inside, n, _share(len(inside), n))
    return coder.finish()


def delta_at_least(mask: BitMask, history: History) -> float:
    """Return a number of bytes that ``delta`` does not stay under, found from each group's number of flips.

    It counts that number, each flip's place in its block, and all blocks as if they were empty; of the last group with
    flips the number alone, because zeros at a payload's end take no bytes. Eight bytes less, for luck with the last
    bits.
    """
    bits = least = 0.0
    for inside, n in _grouped(history.flips(history.step(mask)), history.forecast):
        bits += log2(n + 1)
        if k := len(inside):
            least, p = bits, _share(k, n)
            block = block_size(p)
            bits += k * log2(block) + n / block * log2(1 + block * min(p, ONE - p) / ONE)
    return least / 8 - 8


def _grouped(flips: Indices, forecast: Forecast) -> Iterator[tuple[Indices, int]]:
    """Yield each group's flips, from its start, and its number of weights."""
    ends = flips.searchsorted(forecast.bounds).tolist()
    for (low, high), (first, last) in zip(pairwise(forecast.bounds.tolist()), pairwise(ends), strict=True):
        yield flips[first:last] - low, high - low


def _delta_decode(payload: bytes, history: History) -> BitMask:
    coder, flips = Decoder(payload), [np.zeros(0, np.int64)]
    for low, high in pairwise(history.forecast.bounds.tolist()):
        if count := coder.number(high - low + 1):
            flips.append(low + coder.rare(high - low, _share(count, high - low)))
    return history.after_flips(np.concatenate(flips))


def _context_encode(mask: BitMask, history: History) -> bytes:
    coder, table, step = Encoder(), history.probabilities, history.step(mask)
    coder.mixed(step.hit, table.ravel(), history.contexts)
    coder.rares(step.ranks, history.quiet_bounds, table[:, 0].tolist())
    return coder.finish()


def _context_decode(payload: bytes, history: History) -> BitMask:
    coder, table = Decoder(payload), history.probabilities
    hit = coder.mixed(table.ravel(), history.contexts) == 1
    ranks = coder.rares(history.quiet_bounds, table[:, 0].tolist())
    return history.after_step(hit, ranks)


BITPACK = Codec(0, CodecName.BITPACK, False, _bitpack_encode, _bitpack_decode)
RANGE = Codec(1, CodecName.RANGE, False, _range_encode, _range_decode)
DELTA = Codec(2, CodecName.DELTA, True, _delta_encode, _delta_decode)
CONTEXT = Codec(3, CodecName.CONTEXT, True, _context_encode, _context_decode)
_CODECS = (BITPACK, RANGE, DELTA, CONTEXT)

BY_ID = {codec.wire_id: codec for codec in _CODECS}
BY_NAME: dict[str, Codec] = {codec.name: codec for codec in _CODECS}
if not len(BY_ID) == len(BY_NAME) == len(_CODECS):
    raise AssertionError("two codecs share a wire id or a name")
if BY_NAME.keys() | {CodecName.AUTO} != set(CodecName):
    raise AssertionError("codecs and their names differ")
if any(a.wire_id >= b.wire_id for a, b in pairwise(_CODECS)):
    raise AssertionError("the registry is in the order of its wire ids")


def by_id(wire_id: int) -> Codec | None:
    """Return the codec with a wire id: dslth's own, or that of a plugin that is installed; None if there is none."""
    if wire_id in BY_ID or wire_id not in PLUGINS:
        return BY_ID.get(wire_id)
    return next((codec for codec in _plugins().values() if codec.wire_id == wire_id), None)


@cache
def _plugins() -> Mapping[str, Codec]:
    """Import the codecs of plugins, by name; raises ConfigError if one is no codec, or if two share a wire id."""
    codecs: dict[str, Codec] = {}
    for name in plugins.found("codecs"):
        codec = plugins.loaded("codecs", name)
        if not isinstance(codec, Codec) or codec.name != name or codec.wire_id not in PLUGINS:
            raise ConfigError(
                f"codec {name!r}: expected a dslth.coding.codecs.Codec of that name, with a wire id of {PLUGINS.start} "
                f"to {PLUGINS.stop - 1}"
            )
        if taken := [other.name for other in codecs.values() if other.wire_id == codec.wire_id]:
            raise ConfigError(f"codecs {name!r} and {taken[0]!r} have the same wire id {codec.wire_id}")
        codecs[name] = codec
    return codecs


def encode(mask: BitMask, history: History, name: str) -> tuple[Codec, bytes]:
    """Encode with the codec of this name, or for ``auto`` with that which gives the shortest payload.

    ``auto`` never sends more than ``bitpack`` would.
    """
    if name != CodecName.AUTO:
        codec = BY_NAME[name] if name in BY_NAME else _plugins()[name]
        return codec, codec.encode(mask, history)
    usable = [codec for codec in _CODECS if codec.builds_on or history.depth == 0 or codec is BITPACK]
    coded = [(codec, codec.encode(mask, history)) for codec in usable if codec is not DELTA]
    if delta_at_least(mask, history) <= min(len(payload) for _, payload in coded):
        coded.append((DELTA, DELTA.encode(mask, history)))
    return min(coded, key=lambda pair: (len(pair[1]), pair[0].wire_id))
