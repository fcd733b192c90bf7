"""Random streams derived from the run's seed, one for each purpose; nothing draws from a global generator.

Weights, scores, masks and permutations use raw 64-bit words only, so that every machine and library version draws the
same numbers (numpy promises stable bit streams for its bit generators, not for its distributions).
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["Stream"]


class Stream:
    """A deterministic random stream for one purpose, e.g. ``Stream(seed, "weights", layer)``."""

    def __init__(self, seed: int, *purpose: str | int) -> None:
        name = "/".join(str(part) for part in (seed, *purpose))
        key = hashlib.sha256(name.encode()).digest()[:16]
        self._bits = np.random.Philox(key=int.from_bytes(key, "little"))

    def uniform(self, *shape: int) -> NDArray[np.float32]:
        """Draw float32 uniforms in [0, 1) on a grid of 2**-24, of the given shape."""
        words = self._bits.random_raw(int(np.prod(shape, dtype=np.int64)))
        return ((words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)).reshape(shape)

    def shorts(self, *shape: int) -> NDArray[np.uint16]:
        """Draw uint16 of the given shape, uniform in [0, 2**16)."""
        n = int(np.prod(shape, dtype=np.int64))
        words = self._bits.random_raw(-(-n // 4)).astype("<u8", copy=False)
        return words.view("<u2")[:n].astype(np.uint16, copy=False).reshape(shape)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """Draw a permutation of 0 .. n-1."""
        return np.argsort(self._bits.random_raw(n), kind="stable")

    def choice(self, n: int, size: int) -> NDArray[np.int64]:
        """Draw ``size`` distinct integers of 0 .. n-1, in random order."""
        return self.permutation(n)[:size]

    def integer(self) -> int:
        """Draw an integer in [0, 2**31), for libraries that want a seed."""
        return int(self._bits.random_raw(1)[0] >> np.uint64(33))

    def dirichlet(self, alpha: float, size: int) -> NDArray[np.float64]:
        """Draw Dirichlet(alpha, ..., alpha) shares; the one draw that uses numpy's own distribution code."""
        return np.random.Generator(self._bits).dirichlet(np.full(size, alpha))
