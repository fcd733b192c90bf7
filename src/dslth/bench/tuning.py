"""How values are chosen: by trying each in turn, on samples that peers hold out of their own, never on test samples."""

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


def words(values: Values) -> str:
    """Write values as in ``lr=0.1,alone=0.2``."""
    return ",".join(f"{name}={value:g}" for name, value in values.items())


def search(first: Values, grid: Mapping[str, tuple[float, ...]], attempt: Callable[[Values], T]) -> T:
    """Try each choice of the grid's first value, then of each other one beside the best so far; return the best.

    ``first`` has all values to begin with; without a grid they are the only ones. Of like accuracies the first counts.
    """
    tried: dict[str, T] = {}
    best = dict(first)
    for name, choices in grid.items() or [("", ())]:
        for values in [{**best, name: choice} for choice in choices] or [best]:
            if words(values) not in tried:
                tried[words(values)] = attempt(values)
        best = dict(max(tried.values(), key=lambda one: one.accuracy_personal).values)
    return tried[words(best)]


def effort(first: Values, grid: Mapping[str, tuple[float, ...]]) -> int:
    """Count what ``search`` tries."""
    later = [set(choices) - {first[name]} for name, choices in list(grid.items())[1:]]
    return len(next(iter(grid.values()), (0,))) + sum(map(len, later))
