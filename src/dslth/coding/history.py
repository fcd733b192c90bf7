"""What sender and receiver both know of a sender's masks, and how likely each weight is to flip next."""

import numpy as np
from numpy.typing import NDArray

from dslth.coding.forecast import GROUPS, Forecast
from dslth.coding.rangecoder import ONE, Indices
from dslth.masks import BitMask

__all__ = ["History"]

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
        """Return which active weights are among flips (places in ascending order), and the flips that are not."""
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
