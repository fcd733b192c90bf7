"""How values are chosen: by trying each in turn, on samples that peers hold out of their own, never on test samples."""

import math
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

__all__ = ["VALIDATION", "Tried", "Unfinished", "Values", "effort", "search", "words"]

VALIDATION = 0.1
"""Share of its training samples that each peer holds out while values are chosen."""

Values = Mapping[str, float]


class Unfinished(Exception):  # noqa: N818  (nothing went wrong)
    """What was asked for is not there, and is not measured now: somebody asked to end."""


class Tried(Protocol):
    """What came of some values."""

    @property
    def values(self) -> Values:
        """The values."""

    @property
    def accuracy_personal(self) -> float:
        """The mean over peers at the end."""


T = TypeVar("T", bound=Tried)

FURTHER = ("lr", "fine_tune_lr")
"""Values whose grid goes on beyond its ends, while the best is at one of them."""


def words(values: Values) -> str:
    """Write values as in ``lr=0.1,alone=0.2``."""
    return ",".join(f"{name}={value:g}" for name, value in values.items())


def search(first: Values, grid: Mapping[str, tuple[float, ...]], attempt: Callable[[Values], T]) -> T:
    """Try each choice of the grid's first value, then of each other one beside the best so far; return the best.

    A rate that is best at an end of its grid is tried further that way, so that no grid favours a row. ``first`` has
    all values to begin with; without a grid they are the only ones. Of like accuracies the first counts.
    """
    tried: dict[str, T] = {}

    def best() -> Values:
        return max(tried.values(), key=lambda one: one.accuracy_personal).values if tried else first

    def attempt_new(values: Values) -> None:
        if words(values) not in tried:
            tried[words(values)] = attempt(values)

    for name, choices in grid.items():
        beside = best()
        for choice in choices:
            attempt_new({**beside, name: choice})
        lowest, highest = min(choices), max(choices)
        while name in FURTHER and best()[name] in (lowest, highest):
            if best()[name] == lowest:
                lowest = _further(lowest, -1)
                attempt_new({**beside, name: lowest})
            else:
                highest = _further(highest, 1)
                attempt_new({**beside, name: highest})
    if not grid:
        attempt_new(first)
    return tried[words(best())]


def _further(value: float, sign: int) -> float:
    """Return the next one of 0.1, 0.3, 1, 3, 10 and so on, upwards or downwards."""
    steps = round(2 * math.log10(value) + sign)
    return float(f"{1 if steps % 2 == 0 else 3}e{steps // 2}")


def effort(first: Values, grid: Mapping[str, tuple[float, ...]]) -> int:
    """Count what ``search`` tries at the least."""
    later = [set(choices) - {first[name]} for name, choices in list(grid.items())[1:]]
    return len(next(iter(grid.values()), (0,))) + sum(map(len, later))
