"""What a sink is told of a run, and the figures of its reports that trackers follow."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from dslth.config import RunConfig
from dslth.runs.events import RoundReport

__all__ = ["MOST_CURVES", "About", "Means", "figures"]

MOST_CURVES = 100
"""Peers that trackers show one by one; of a run with more they show the mean alone."""


@dataclass(frozen=True)
class About:
    """A run: its folder, the number of its peers, and its settings (None where only reports are at hand)."""

    folder: Path
    peers: int
    settings: RunConfig | None = None


def figures(report: RoundReport) -> dict[str, float]:
    """Return a round's figures: loss, accuracies where they were measured, bytes sent, seconds, memory in bytes."""
    links = report.links.values()
    accuracies = {"personal": report.accuracy_personal, "global": report.accuracy_global}
    return {
        "loss": report.loss,
        **{f"accuracy/{name}": share for name, share in accuracies.items() if share is not None},
        "bytes_sent/payload": float(sum(link.payload_sent for link in links)),
        "bytes_sent/message": float(sum(link.message_sent for link in links)),
        **{f"seconds/{phase}": seconds for phase, seconds in report.seconds.model_dump().items()},
        "missing_masks": float(len(report.missing)),
        "memory_bytes": float(report.memory_bytes),
    }


class Means:
    """Means over the peers of each round, ready once all of them have reported it."""

    def __init__(self, peers: int) -> None:
        self._peers = peers
        self._rounds: dict[int, dict[int, dict[str, float]]] = {}

    def take(self, report: RoundReport) -> Iterator[tuple[int, dict[str, float]]]:
        """Take a peer's report, and yield the round and its means if it was the last one."""
        heard = self._rounds.setdefault(report.round, {})
        heard[report.peer] = figures(report)
        if len(heard) == self._peers:
            del self._rounds[report.round]
            names = [name for name in heard[report.peer] if all(name in one for one in heard.values())]
            yield report.round, {name: fmean(one[name] for one in heard.values()) for name in names}
