"""DA-DPFL: DisPFL with masks that become sparser."""

from collections.abc import Mapping
from itertools import accumulate
from math import ceil
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dslth.bench.codings import SparseCoding, SparseModel
from dslth.bench.methods.base import RATES, State
from dslth.bench.methods.dispfl import DisPfl
from dslth.engines.base import PeerJob

__all__ = ["DaDpfl"]


class DaDpfl(DisPfl):
    """DA-DPFL (Long et al. 2024): DisPFL from sparse to sparser, and each peer decides when.

    The first round in which the model's distance from its first one changes by at most the share ``settled`` of what
    it was after round 0 is round t; weights are cut there and, at ever shorter distances, at t + t/2, t + t/2 + t/4
    and so on, until ``LEAST`` of the first ones are left. A layer loses the share of its smallest weights that their
    PQ index with p = 1/2 and q = 1 tells: the closer it is to equal weights, the fewer.

    Simplified: a peer looks at its own model alone, where theirs cut when half of all peers are settled. No peer waits
    for others within a round to have their newer models ("dynamic aggregation"): here all neighbours' models are
    those of the same round. The share that is dropped and grown is DisPFL's.
    """

    name = "da-dpfl"
    lr = 0.05
    settled: float = 0.1
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"lr": RATES, "settled": (0.05, 0.1, 0.2)}
    CUTS: ClassVar[int] = 9
    LEAST: ClassVar[float] = 0.4
    """As theirs, from a density of .5 to one of .2."""

    def __init__(self, job: PeerJob, values: Mapping[str, float] = MappingProxyType({})) -> None:
        super().__init__(job, values)
        self._start, self._most = self.x, self.mask.sum()
        self._moved = [0.0, 0.0]
        """The distances from the first model after round 0 and after the last round."""
        self._cuts: tuple[int, ...] = ()
        self.coding = SparseCoding(self.net.layout, fewer=True)

    def _say(self, round_: int) -> SparseModel:
        self._look(round_)
        if round_ in self._cuts and self.mask.sum() > self.LEAST * self._most:
            self._cut()
        return super()._say(round_)

    def _look(self, round_: int) -> None:
        """Plan the cuts if the model moves little."""
        distance = float((self.x - self._start).norm())
        first, last = self._moved
        if round_ == 0:
            first = distance
        elif not self._cuts and abs(distance - last) <= self.settled * first:
            self._cuts = _cuts(round_, self.CUTS)
        self._moved = [first, distance]

    def _cut(self) -> None:
        self.mask = self.mask.clone()  # the old one may be in a state to restore
        lengths = list(self.net.layout.lengths)
        parts = zip(torch.split(self.mask, lengths), torch.split(self.x, lengths), strict=True)
        for (mask, x), is_weight in zip(parts, self.net.layout.is_weight, strict=True):
            if is_weight:
                size = x[mask].abs()
                fewer = len(size) - _worth(size)
                mask[x.abs().masked_fill(~mask, torch.inf).topk(fewer, largest=False).indices] = False
        self.x, self.velocity = self.x * self.mask, self.velocity * self.mask

    def state(self) -> State:
        """Return what was learned between two rounds, and what is known of when to cut."""
        return {**super().state(), "moved": np.array(self._moved), "cuts": np.array(self._cuts, np.int64)}

    def restore(self, state: State) -> None:
        """Take up a state; raises KeyError or ValueError if it is not one of this method."""
        super().restore(state)
        self._moved, self._cuts = state["moved"].tolist(), tuple(state["cuts"].tolist())


def _cuts(first: int, count: int) -> tuple[int, ...]:
    """Return the rounds of the cuts: the distance to each is half of that to the one before."""
    return tuple(accumulate(round(first / 2**cut) for cut in range(count)))


def _worth(sizes: Tensor) -> int:
    """Return how many of a layer's weights are worth keeping: the bound of the PQ index, at least a tenth."""
    count = len(sizes)
    if not sizes.any():
        return count
    return max(ceil(float(sizes.double().sqrt().mean() ** 2 / sizes.double().mean()) * count), ceil(count / 10))
