"""The round modes: which neighbours a round waits for, how long, and which masks it uses. One small object each."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median_low
from typing import Any, TypeVar

from dslth.config import ExperimentConfig, Mode
from dslth.exchange.neighbour import Neighbour, State

__all__ = ["BEHIND", "PROBATION", "Async", "Deadline", "Patient", "Sync", "middle", "mode_of"]

BEHIND = 1
"""Rounds that a peer may be behind its neighbours without skipping any."""
PROBATION = 32
"""Rounds that pass after a neighbour's second loss until it is waited for again; twice as many with each further loss.

Its masks still count if they come in time. So a neighbour that only keeps saying hello delays nobody.
"""

M = TypeVar("M")
Many = Sequence[Neighbour[Any]]


class Sync:
    """Wait for all, up to the deadline; for a neighbour that missed it not again until it is heard again."""

    patient = False
    in_step = True
    """Whether a mask is used only in its own round."""
    begins_alone = False
    """Whether a new peer begins without the neighbours that do not come within the join time-out."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def missing(self, neighbours: Many, round_: int, connected: frozenset[int]) -> Many:
        """Return the neighbours to wait for: those in this round or before it whose mask has not come."""
        return [n for n in neighbours if n.lacks(round_) and not n.has_skipped(round_)]

    def lose(self, neighbour: Neighbour[Any]) -> None:
        """Note that a neighbour missed the deadline."""
        neighbour.state = State.LOST

    def trusts(self, neighbour: Neighbour[Any], round_: int) -> bool:
        """Return whether a neighbour may be waited for: after each loss it is on probation for longer."""
        probation = PROBATION * 2 ** (neighbour.losses - 2) if neighbour.losses > 1 else 0
        return round_ >= (round_ if neighbour.missed_in is None else neighbour.missed_in) + probation

    def awaited_from(self, neighbour: Neighbour[Any], claimed: int, round_: int) -> int | None:
        """Return the round from which to wait for a neighbour that says hello in round ``claimed``; None: not at all.

        A neighbour that is further behind skips rounds; its first mask shows the next round that it plays.
        """
        near = claimed >= round_ - BEHIND
        return round_ + bool(round_) if near and self.trusts(neighbour, round_) else None

    def received(self, neighbours: Iterable[Neighbour[M]], round_: int) -> Mapping[int, M]:
        """Return the masks that a round ends with, by neighbour."""
        return {n.id: n.masks[round_] for n in neighbours if round_ in n.masks}

    def shown(self, there: Many, round_: int) -> int:
        """Return the round that the neighbours' masks show the run to be in, for a peer in round ``round_``."""
        return middle([neighbour.heard for neighbour in there], round_)

    def stays_for(self, neighbours: Many, connected: frozenset[int]) -> Many:
        """Return the neighbours for which a finished peer stays: those that have not said bye."""
        return [neighbour for neighbour in neighbours if neighbour.state is State.AWAITED]


class Patient(Sync):
    """Sync without a deadline: a lost neighbour is waited for until it is back, and no round is skipped."""

    patient = True

    def __init__(self) -> None:
        super().__init__(float("inf"))

    def missing(self, neighbours: Many, round_: int, connected: frozenset[int]) -> Many:
        """Return those whose mask has not come: nobody skips a round, so a later mask shows that this one is lost."""
        return [neighbour for neighbour in neighbours if neighbour.lacks(round_)]

    def awaited_from(self, neighbour: Neighbour[Any], claimed: int, round_: int) -> int | None:
        """Return this round: every neighbour is waited for."""
        return round_

    def shown(self, there: Many, round_: int) -> int:
        """Return the peer's own round: no other peer continues without it."""
        return round_

    def stays_for(self, neighbours: Many, connected: frozenset[int]) -> Many:
        """Return those that have not said bye, or are connected and have not heard this peer's.

        What was sent last may have to be sent again.
        """
        return [
            n
            for n in neighbours
            if (n.state is State.AWAITED and not n.said_bye) or (n.said_bye and not n.heard_bye and n.id in connected)
        ]


class Deadline(Sync):
    """Wait in each round for all neighbours that are connected, up to the deadline."""

    begins_alone = True

    def missing(self, neighbours: Many, round_: int, connected: frozenset[int]) -> Many:
        """Return the neighbours to wait for that are connected."""
        return [n for n in super().missing(neighbours, round_, connected) if n.id in connected]

    def lose(self, neighbour: Neighbour[Any]) -> None:
        """Do nothing: it is waited for in the next round all the same."""

    def trusts(self, neighbour: Neighbour[Any], round_: int) -> bool:
        """Return True, but only once per round: nobody waits long for it, so it may come and go."""
        return _not_missed_in(neighbour, round_)

    def stays_for(self, neighbours: Many, connected: frozenset[int]) -> Many:
        """Return the neighbours that are connected and have not said bye."""
        return [n for n in super().stays_for(neighbours, connected) if n.id in connected]


class Async(Sync):
    """Wait for nobody: a round uses each neighbour's newest mask, unless it is too old."""

    in_step = False
    begins_alone = True

    def __init__(self, deadline: float, staleness: int) -> None:
        super().__init__(deadline)
        self._staleness = staleness
        self._arriving = True

    def missing(self, neighbours: Many, round_: int, connected: frozenset[int]) -> Many:
        """Return nobody."""
        return []

    def trusts(self, neighbour: Neighbour[Any], round_: int) -> bool:
        """Return True, but only once per round: nobody waits for it, so it may come and go."""
        return _not_missed_in(neighbour, round_)

    def awaited_from(self, neighbour: Neighbour[Any], claimed: int, round_: int) -> int | None:
        """Return the next round, whatever round the neighbour is in."""
        return round_ + bool(round_) if self.trusts(neighbour, round_) else None

    def received(self, neighbours: Iterable[Neighbour[M]], round_: int) -> Mapping[int, M]:
        """Return the newest masks, up to ``staleness`` rounds old."""
        return {n.id: n.newest[1] for n in neighbours if n.newest and n.newest[0] >= round_ - self._staleness}

    def shown(self, there: Many, round_: int) -> int:
        """Return, at the start, the round that the others' masks and claims show; later the peer's own round."""
        if not self._arriving:
            return round_
        self._arriving = middle([n.claimed for n in there], round_) > round_ + BEHIND
        return middle([None if n.heard is None else min(n.heard, n.claimed or 0) for n in there], round_)


def _not_missed_in(neighbour: Neighbour[Any], round_: int) -> bool:
    return neighbour.losses < 2 or neighbour.missed_in is None or round_ > neighbour.missed_in


def middle(rounds: Iterable[int | None], otherwise: int) -> int:
    """Return the low median of rounds, which a liar can hardly move; None among them counts as ``otherwise``."""
    known = [otherwise if round_ is None else round_ for round_ in rounds]
    return median_low(known) if known else otherwise


def mode_of(experiment: ExperimentConfig) -> Sync:
    """Return the mode of an experiment."""
    deadline = float("inf") if experiment.deadline == "none" else experiment.deadline
    match experiment.mode:
        case Mode.SYNC:
            return Patient() if experiment.deadline == "none" else Sync(deadline)
        case Mode.DEADLINE:
            return Deadline(deadline)
        case Mode.ASYNC:
            return Async(deadline, experiment.staleness)
