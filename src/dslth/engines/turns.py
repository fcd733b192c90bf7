"""Peers that share a machine's cores learn in turn: as many at a time as there are cores.

Ten peers on two cores that learn at once push each other out of the caches, and all hold what a step needs in between;
one after the other they take less time, and for steps the memory of two (docs/performance.md).
"""

import ctypes
import os
import time
from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Semaphore

__all__ = ["Turns", "at_once"]

FIRST = 30.0
"""Seconds that a peer waits for its first turn, when nobody knows yet how long one takes."""
LEAST, MANY = 1.0, 5
"""Seconds of other turns without an end after which it learns all the same; how many times as long as its own took."""
LONG = 0.05
"""Seconds of a turn after which memory is given back; a shorter one took little."""


def at_once(threads: Sequence[int]) -> int:
    """Return how many peers learn at a time on this machine; ``threads`` are those that each computes with."""
    return max(1, len(os.sched_getaffinity(0)) // max(threads))


class Turns:
    """The turns of a run's peers, shared by their processes; ``threads`` as for ``at_once``, one for each peer.

    The launcher gives back the turn of a peer that was killed in it. A peer that is stopped in its turn keeps it; if
    that leaves none for the others, they learn without.
    """

    def __init__(self, context: BaseContext, threads: Sequence[int]) -> None:
        self._free: Semaphore = context.Semaphore(at_once(threads))
        # into turns and out of them, by peer: odd for one that is in a turn
        self._steps: MutableSequence[int] = context.RawArray("L", len(threads))
        self._longest: float | None = None

    @contextmanager
    def turn(self, peer: int) -> Iterator[None]:
        """Wait for a turn of a peer, which lasts until the block ends."""
        mine = self._wait()
        self._steps[peer] += mine
        start = time.perf_counter()
        try:
            yield
        finally:
            lasted = time.perf_counter() - start
            self._longest = max(lasted, self._longest or 0.0)
            if lasted > LONG:
                _give_memory_back()
            self._steps[peer] += mine
            if mine:
                self._free.release()

    def give_back(self, peer: int) -> None:
        """Give back the turn of a peer that has died, if it had one."""
        if self._steps[peer] % 2:
            self._steps[peer] += 1
            self._free.release()

    def _wait(self) -> bool:
        """Wait until there is a turn; False if for a long time nobody has begun or ended one."""
        patience = FIRST if self._longest is None else max(LEAST, MANY * self._longest)
        before = list(self._steps)
        while not self._free.acquire(timeout=patience):
            now = list(self._steps)
            if now == before:
                return False
            before = now
        return True


def _give_memory_back() -> None:
    """Let the kernel have what the allocator holds free, for the peer whose turn is next."""
    with suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)
