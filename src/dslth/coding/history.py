"""What sender and receiver both know of a sender's masks, and how likely each weight is to flip next."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dslth.coding.forecast import GROUPS, Forecast
from dslth.coding.rangecoder import ONE, Indices
from dslth.masks import BitMask

__all__ = ["History", "Step"]

_CONTEXT = np.array([(f & 3) * 6 + min(5, (f >> 2).bit_count()) for f in range(128)])
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


@dataclass(frozen=True)
class Step:
    """From a history's last mask to the next: ``hit`` marks the active weights that flip.

    ``surprises`` are the places of the quiet weights that flip, ascending, ``ranks`` how many quiet ones stand before
    each of them.
    """

    mask: BitMask
    hit: NDArray[np.bool_]
    surprises: Indices
    ranks: Indices


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
        self._step: Step | None = None  # the one that was looked at last: coded, and then gone

    @cached_property
    def contexts(self) -> Indices:
        """The context of each active weight among those of all groups: 24 times the group's number, and its own."""
        ends = np.searchsorted(self.active, self.forecast.bounds)
        grouped: Indices = np.repeat(_CONTEXTS * np.arange(len(ends) - 1), np.diff(ends))
        grouped += _CONTEXT.take(self._steps)
        return grouped

    # --- steps to the next mask -------------------------------------------------------------------------------------

    def step(self, mask: BitMask) -> Step:
        """Return the step to a mask; for the mask that was last asked for, or decoded, it is known already."""
        if self._step is None or self._step.mask is not mask:
            self._step = self._step_of(mask, self.forecast.differences(self.mask, mask))
        return self._step

    def flips(self, step: Step) -> Indices:
        """Return the places of all weights that flip, ascending."""
        return np.sort(np.concatenate([self.active[step.hit], step.surprises]), kind="stable")

    def after_flips(self, flips: Indices) -> BitMask:
        """Return the mask after flips in these places, ascending."""
        mask = self.forecast.flipped(self.mask, flips)
        self._step = self._step_of(mask, flips)
        return mask

    def after_step(self, hit: NDArray[np.bool_], ranks: Indices) -> BitMask:
        """Return the mask after a step of these hits and ranks of surprises."""
        quiet_before = self.active - np.arange(len(self.active))
        surprises = ranks + np.searchsorted(quiet_before, ranks, side="right")
        mask = self.forecast.flipped(self.mask, np.concatenate([self.active[hit], surprises]))
        self._step = Step(mask, hit, surprises, ranks)
        return mask

    def _step_of(self, mask: BitMask, flips: Indices) -> Step:
        before = np.searchsorted(self.active, flips)
        known = np.append(self.active, -1)[before] == flips
        hit = np.zeros(len(self.active), np.bool_)
        hit[before[known]] = True
        return Step(mask, hit, flips[~known], (flips - before)[~known])

    @property
    def quiet_bounds(self) -> list[int]:
        """How many quiet weights stand before each group, and how many there are."""
        bounds = self.forecast.bounds
        return list((bounds - np.searchsorted(self.active, bounds)).tolist())

    # --- probabilities ----------------------------------------------------------------------------------------------

    @cached_property
    def probabilities(self) -> Indices:
        """The probability of a flip in each context of each group (layers * groups, 24), in units of 2**-24.

        What was expected is scaled by how the last round turned out: early on, each round has fewer flips.
        """
        scaled: Indices = (self._expected >> 12) * (self._pace >> 12)
        return np.minimum(np.maximum(scaled, ONE >> 17), ONE - (ONE >> 6))

    @cached_property
    def _expected(self) -> Indices:
        """The share of flips by the counts of the layer's group, in the shape and unit of ``probabilities``.

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
        step, after = self.step(mask), History(self.forecast, mask, round_)
        after.depth, self._step = self.depth + 1, None
        where = step.surprises - step.ranks
        active = np.insert(self.active, where, step.surprises)
        steps = np.insert((self._steps << np.uint8(1)) & np.uint8(127) | step.hit, where, 1)
        after.active, after._steps = active[steps > 0], steps[steps > 0]

        shape = (len(self.forecast.sizes), _CONTEXTS)
        met = [np.bincount(which, minlength=shape[0] * shape[1]) for which in (self.contexts[step.hit], self.contexts)]
        now = np.stack(met, axis=1).reshape(*shape, 2)
        now[:, 0, 0] = np.diff(np.searchsorted(step.surprises, self.forecast.bounds))
        now[:, 0, 1] = self.forecast.sizes - now[..., 1].sum(1)
        after._met = self._met // 2 + _SCALE * now.reshape(self._met.shape)
        if self.depth:
            expected = int((self._expected * now[..., 1]).sum())
            flips = int(now[..., 0].sum())
            after._pace = min(4 * ONE, max(ONE // 4, flips * ONE * ONE // max(1, expected)))
        return after
