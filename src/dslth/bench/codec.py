"""``dslth bench codec``: size against entropy and speed of every mask codec, beside general ones, in one process."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from bitarray import bitarray
from bitarray.util import sc_encode

from dslth.bench import results
from dslth.coding import codecs
from dslth.coding.forecast import Forecast
from dslth.coding.history import History
from dslth.masks import BitMask
from dslth.show.tables import Fitted

__all__ = ["DENSITIES", "Figure", "correlated", "measure", "rows", "table", "write"]

DENSITIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5)
FLIPS = (0.0005, 0.002, 0.005, 0.01, 0.05)
REPEATS = 5
ROUNDS = 16


@dataclass(frozen=True)
class Figure:
    """One codec on one kind of mask; bits are per weight, speeds in million weights a second (best of five)."""

    masks: str
    codec: str
    bits: float
    entropy: float
    ratio: float | None
    encode: float
    decode: float | None


def entropy(p: float) -> float:
    """Return the entropy of a bit that is 1 with probability p, in bits."""
    return 0.0 if p in (0, 1) else float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))


def correlated(n: int, share: float, seed: int) -> list[BitMask]:
    """Make the masks of some rounds of density 1/2; in each round a ``share`` of the bits flips.

    Nine in ten flips hit one weight in twenty, as near a top-k threshold, so that past flips predict future ones.
    """
    rng = np.random.default_rng(seed)
    near = rng.random(n) < 0.05
    chance = np.where(near, min(0.9 * share / 0.05, 0.5), 0.1 * share / 0.95)
    bits = rng.random(n) < 0.5
    masks = [BitMask.from_arrays([bits])]
    for _ in range(ROUNDS):
        bits = bits ^ (rng.random(n) < chance)
        masks.append(BitMask.from_arrays([bits]))
    return masks


def measure(weights: int, seed: int, progress: Callable[[str], None] = lambda text: None) -> list[Figure]:
    """Measure all codecs on masks of some weights: of each density, and with each share of flips."""
    figures = []
    for density in DENSITIES:
        name = f"density {density:g}"
        progress(name)
        mask = BitMask.from_arrays([np.random.default_rng([seed, int(1e6 * density)]).random(weights) < density])
        bound = entropy(mask.density[0])
        for codec in (codecs.BITPACK, codecs.RANGE):
            figures.append(_figure(name, codec, mask, History(_nothing_known(weights)), bound))
        figures += _general(name, mask, bound)
    for share in FLIPS:
        name = f"flips {share:g}"
        progress(name)
        *past, mask = correlated(weights, share, seed)
        history = History(_nothing_known(weights), past[0], 0)
        for round_, before in enumerate(past[1:], 1):
            history = history.advanced(before, round_)
        flips = mask ^ past[-1]
        bound = entropy(flips.density[0])
        for codec in (codecs.DELTA, codecs.CONTEXT):
            figures.append(_figure(name, codec, mask, history, bound))
        figures += _general(name, flips, bound)
    return figures


def _nothing_known(weights: int) -> Forecast:
    """Return the forecast for a peer whose scores are not known at all."""
    return Forecast([np.zeros(weights, np.float32)], [0])


def _figure(name: str, codec: codecs.Codec, mask: BitMask, history: History, bound: float) -> Figure:
    payload = codec.encode(mask, history)
    if codec.decode(payload, history) != mask:
        raise AssertionError(f"{codec.name} is not lossless")
    encode = _speed(lambda: codec.encode(mask, history), mask)
    decode = _speed(lambda: codec.decode(payload, history), mask)
    return _made(name, codec.name, payload, mask, bound, encode, decode)


def _general(name: str, mask: BitMask, bound: float) -> Iterator[Figure]:
    """Measure general codecs: zstd on the packed bits, bitarray's sparse code."""
    bits = bitarray(buffer=mask.pack())[: mask.sizes[0]]
    yield _made(name, "sc_encode", sc_encode(bits), mask, bound, _speed(lambda: sc_encode(bits), mask), None)
    try:
        import zstandard
    except ImportError:
        return
    packed, level = mask.pack(), zstandard.ZstdCompressor(level=19)
    coded = level.compress(packed)
    decode = _speed(lambda: zstandard.ZstdDecompressor().decompress(coded), mask)
    yield _made(name, "zstd -19", coded, mask, bound, _speed(lambda: level.compress(packed), mask), decode)


def _made(
    name: str, codec: str, payload: bytes, mask: BitMask, bound: float, encode: float, decode: float | None
) -> Figure:
    bits = 8 * len(payload) / sum(mask.sizes)
    return Figure(name, codec, bits, bound, bits / bound if bound else None, encode, decode)


def _speed(function: Callable[[], object], mask: BitMask) -> float:
    times = [time.perf_counter()]
    for _ in range(REPEATS):
        function()
        times.append(time.perf_counter())
    return sum(mask.sizes) / 1e6 / min(b - a for a, b in pairwise(times))


def table(figures: list[Figure]) -> Fitted:
    """Show the figures, bits beside the entropy of independent bits (or flips) of that density."""
    columns = {
        "masks": [f.masks for f in figures],
        "codec": [f.codec for f in figures],
        "bits": [f"{f.bits:.5f}" for f in figures],
        "entropy": [f"{f.entropy:.5f}" for f in figures],
        "ratio": ["–" if f.ratio is None else f"{f.ratio:.3f}" for f in figures],
        "encode": [f"{f.encode:.0f}" for f in figures],
        "decode": ["–" if f.decode is None else f"{f.decode:.0f}" for f in figures],
    }
    note = "bits and entropy: payload bits per weight; encode and decode: million weights a second"
    return Fitted("mask codecs", columns, spare=("entropy", "ratio"), note=note)


def rows(figures: list[Figure]) -> list[dict[str, Any]]:
    """Return the figures as plain rows for CSV and JSON."""
    return [asdict(figure) for figure in figures]


def write(figures: list[Figure], folder: Path) -> None:
    """Write ``codec.csv`` and ``codec.json``; raises OutputError."""
    results.write(folder, "codec", rows(figures), rows(figures))
