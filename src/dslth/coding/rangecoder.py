"""The entropy coder: bits, counts and rare positions to bytes and back, by integer probabilities.

Probabilities are integers in units of 2**-24, so that any two machines agree. The coder itself is the range coder of
the library ``constriction``.
"""

import constriction
import numpy as np
from numpy.typing import NDArray

__all__ = ["ONE", "Bits", "Decoder", "Encoder", "Indices"]

Bits = NDArray[np.uint8]
Indices = NDArray[np.int64]

ONE = 1 << 24
"""The unit of probabilities; also the largest alphabet that the range coder takes."""
CROWD = 15
"""Surprises in a block from which on their number is coded apart."""

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
