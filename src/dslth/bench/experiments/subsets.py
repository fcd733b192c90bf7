"""The Strong Lottery Ticket Hypothesis for one weight: how well a subset of random numbers adds up to a given one.

A mask that replaces a target weight by kept random weights solves a subset-sum problem. Lueker 1998, and for networks
Pensia et al. 2020: with probability 1 - delta, n = O(log(1 / min(eps, delta))) numbers suffice for an error of eps. So
the error falls by a constant factor with each further candidate. Here many agents, each with targets of its own, choose
their masks over ONE set of candidates, as peers do over one frozen network; the best mask of each is found exactly.
"""

from collections.abc import Callable, Mapping, Sequence
from math import fsum, log, log10, pi, sqrt

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from dslth.config import Settings
from dslth.seeds import Stream

__all__ = ["DRAWN", "MASKS", "SubsetSums", "approximate", "best_masks", "bits_per_candidate", "counting"]

Reals = NDArray[np.float64]
MASKS: Mapping[str, tuple[int, ...]] = {"{0,1}": (0, 1), "{-1,0,1}": (0, 1, -1)}
"""What a mask may multiply a weight with."""
DECILES = tuple(range(10, 100, 10))
MOST_SUMS = 1 << 20
"""Of half of the candidates; all of them lie in memory."""


def _constants(uniform: Reals) -> Reals:
    return np.where(uniform[..., 0] < 0, -1.0, 1.0)


DRAWN: Mapping[str, tuple[Callable[[Reals], Reals], float]] = {
    "uniform": (lambda uniform: uniform[..., 0], 1 / 3),
    "product": (lambda uniform: uniform.prod(-1), 1 / 9),
    "constant": (_constants, 1.0),
}
"""Candidates from two uniform numbers in [-1, 1) each, and their mean square: one uniform number; the product of two,
as where a path has two random weights; signs, which are scaled by ``1 / sqrt(n)``, as signed Kaiming constants are."""


class SubsetSums(Settings):
    """How many candidates, agents, and weights of the one random network there are for each agent to approximate.

    Targets are uniform in [-1/2, 1/2). ``candidates`` go by the values that a mask may have.
    """

    agents: int = 10
    weights: int = 100
    candidates: Mapping[str, tuple[int, ...]]

    @model_validator(mode="after")
    def _bounded(self) -> "SubsetSums":
        for mask, numbers in self.candidates.items():
            if mask not in MASKS:
                raise ValueError(f"candidates: masks are {' or '.join(MASKS)}")
            if len(numbers) < 2 or min(numbers) < 1 or len(MASKS[mask]) ** ((max(numbers) + 1) // 2) > MOST_SUMS:
                raise ValueError(f"candidates: at least two numbers from 1 to {40 if mask == '{0,1}' else 24}")
        if self.agents < 1 or self.weights < 1:
            raise ValueError("at least one agent and one weight")
        return self


def best_masks(candidates: Reals, targets: Reals, values: Sequence[int]) -> NDArray[np.int8]:
    """Return, for each target (t,), the mask over the candidates (n,) whose sum comes nearest to it; shape (t, n).

    Exact, by meeting in the middle: of each half of the candidates all sums are listed, and for each sum of the one
    half the nearest completion is looked up among the sorted ones of the other: ``len(values) ** (n / 2)`` look-ups.
    """
    middle = len(candidates) // 2
    left, right = _sums(candidates[:middle], values), _sums(candidates[middle:], values)
    order = np.argsort(right, kind="stable")
    ordered = right[order]
    masks = np.empty((len(targets), len(candidates)), np.int8)
    for number, target in enumerate(targets):
        wanted = target - left
        above = np.searchsorted(ordered, wanted).clip(0, len(ordered) - 1)
        below = (above - 1).clip(0)
        places = np.where(np.abs(ordered[below] - wanted) < np.abs(ordered[above] - wanted), below, above)
        best = int(np.argmin(np.abs(ordered[places] - wanted)))
        masks[number, :middle] = _mask(best, middle, values)
        masks[number, middle:] = _mask(int(order[places[best]]), len(candidates) - middle, values)
    return masks


def _sums(candidates: Reals, values: Sequence[int]) -> Reals:
    """List the sums of all masks; that of the first candidate changes fastest."""
    sums = np.zeros(1)
    for candidate in candidates:
        sums = (np.array(values)[:, None] * candidate + sums).ravel()
    return sums


def _mask(index: int, size: int, values: Sequence[int]) -> list[int]:
    """Return the mask whose sum has this place in the list."""
    return [values[index // len(values) ** place % len(values)] for place in range(size)]


def approximate(settings: SubsetSums, drawn: str, mask: str, n: int, seed: int) -> Reals:
    """Return the errors with which agents approximate their targets out of n candidates a weight: (agents, weights).

    With more candidates the first ones stay the same, and so do the targets.
    """
    make, _ = DRAWN[drawn]
    errors = np.empty((settings.agents, settings.weights))
    for weight in range(settings.weights):
        candidates = make(2 * _fine(Stream(seed, "candidates", weight), n, 2) - 1)
        candidates *= 1 / sqrt(n) if drawn == "constant" else 1
        targets = _fine(Stream(seed, "targets", weight), settings.agents) - 0.5
        for agent, chosen in enumerate(best_masks(candidates, targets, MASKS[mask])):
            errors[agent, weight] = abs(fsum([*(chosen * candidates), -targets[agent]]))
    return errors


def _fine(stream: Stream, *shape: int) -> Reals:
    """Draw uniforms in [0, 1) on a grid of 2**-48: on one of 2**-24, errors would stop to fall at about 1e-7."""
    two = stream.uniform(*shape, 2).astype(np.float64)
    return two[..., 0] + two[..., 1] * 2.0**-24


def counting(drawn: str, mask: str, n: int) -> float | None:
    """Return the median error that counting sums predicts; None for constants, most of whose sums are equal.

    The ``len(values) ** n`` sums lie about as densely as a normal density of their variance says; were they
    independent, the one nearest to a target would be within eps of it with probability ``1 - exp(-2 * eps * density)``.
    Averaged over the targets' interval, the density is taken at a third of their spread.
    """
    if drawn == "constant":
        return None
    values = np.array(MASKS[mask], float)
    mean_square = DRAWN[drawn][1]
    variance = n * mean_square * float(np.mean(values**2))
    target_square = 1 / 12
    density = len(values) ** n * np.exp(-target_square / (2 * variance)) / sqrt(2 * pi * variance)
    return float(log(2) / (2 * density))


def bits_per_candidate(numbers: Sequence[int], errors: Sequence[float]) -> float:
    """Return the slope of a line through (n, -log2 error), fitted by least squares."""
    return -float(np.polyfit(numbers, np.log2(errors), 1)[0])


def log_deciles(errors: Reals) -> list[float]:
    """Return the nine deciles of log10 of errors; an exact hit counts as one of 1e-18."""
    return [log10(error) for error in np.percentile(np.maximum(errors, 1e-18), DECILES)]
