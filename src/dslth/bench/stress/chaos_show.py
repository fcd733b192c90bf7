"""The results of a chaos run, for people and programs: a timeline, a table, CSV, JSON, a plot."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import RenderableType
from rich.text import Text

from dslth.bench.stress.chaos import SIGNS, ChaosResult, Injected
from dslth.engines.supervisor import Outcome
from dslth.errors import OutputError
from dslth.show import timeline
from dslth.show.tables import Fitted
from dslth.show.timeline import Mark
from dslth.show.words import percent

__all__ = ["Drawing", "drawing", "parts", "plot", "write"]


class Drawing(NamedTuple):
    """Marks of what was injected and of what the reports say, in seconds after the start."""

    peers: Sequence[int]
    done: Sequence[Mark]
    noticed: Sequence[Mark]
    seconds: float


def drawing(outcome: Outcome, injected: Sequence[Injected]) -> Drawing:
    """Return the marks of what happened in a run."""
    summary, start = outcome.measured(), outcome.folder.launched() or 0.0
    ends = {peer: events[-1].time - start for peer, events in outcome.folder.events().items()}
    noticed = timeline.marks(summary.happenings, start)
    noticed += [Mark(peer, seconds, timeline.MARKS["finished"]) for peer, seconds in ends.items()]
    done = [
        Mark(peer, item.time - start, SIGNS[item.what])
        for item in injected
        for peer in (item.peer, item.other)
        if peer is not None
    ]
    return Drawing([peer.id for peer in summary.peers], done, noticed, summary.seconds)


def parts(drawn: Drawing, runs: Sequence[ChaosResult], deadline: float) -> list[RenderableType]:
    """Make the pictures, of what was injected and of what the reports say, and the table."""
    legend = ", ".join(f"{sign} {what}" for what, sign in SIGNS.items())
    return [
        Text("what was injected", style="bold"),
        Text(timeline.picture(drawn.peers, drawn.done, drawn.seconds), no_wrap=True),
        Text(legend + "; a cut stands at both its ends", style="dim italic"),
        Text("\nwhat the reports say", style="bold"),
        Text(timeline.picture(drawn.peers, drawn.noticed, drawn.seconds), no_wrap=True),
        Text(timeline.legend(mark.sign for mark in drawn.noticed), style="dim italic"),
        Text(),
        _table(runs, deadline),
    ]


def _rows(run: ChaosResult) -> dict[str, str]:
    return {
        "mean personal accuracy": percent(run.accuracy_personal),
        "worst personal accuracy": percent(run.accuracy_worst),
        "seconds": f"{run.seconds:.1f}",
        "rounds of the slowest peer": str(min(run.rounds_completed.values())),
        "longest wait of a round, seconds": f"{max(run.longest_wait.values()):.2f}",
        "deadlines that a peer waited for, at most": str(max(run.deadlines_missed.values())),
        "neighbours' masks missed": str(run.masks_missed),
        "kills, stops, cuts": ", ".join(str(run.faults.get(kind, 0)) for kind in ("kill", "stop", "cut")),
        "restarts, rejoined": f"{run.restarts}, {run.rejoined}",
    }


def _table(runs: Sequence[ChaosResult], deadline: float) -> Fitted:
    cells = [_rows(run) for run in runs]
    columns: dict[str, Sequence[str]] = {"figure": list(cells[0])}
    columns |= {run.name: list(row.values()) for run, row in zip(runs, cells, strict=True)}
    return Fitted(f"undisturbed and disturbed; the deadline is {deadline:g} s", columns)


def write(folder: Path, record: Mapping[str, Any], runs: Sequence[ChaosResult]) -> None:
    """Write ``chaos.json`` and ``chaos.csv`` (a line per run and peer); raises OutputError."""
    try:
        (folder / "chaos.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        with (folder / "chaos.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["run", "peer", "rounds_completed", "longest_wait", "deadlines_missed"])
            for run in runs:
                for peer, wait in run.longest_wait.items():
                    writer.writerow([run.name, peer, run.rounds_completed[peer], wait, run.deadlines_missed[peer]])
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}") from None


def plot(folder: Path, outcome: Outcome, drawn: Drawing) -> bool:
    """Draw ``chaos.png``: rounds over time with the faults; False, and nothing drawn, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    start = outcome.folder.launched() or 0.0
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds", ylabel="round")
    at: dict[int, list[tuple[float, int]]] = {}
    for peer, events in outcome.folder.events().items():
        at[peer] = [(event.time - start, event.round) for event in events if event.event == "round"]
        axes.plot(*zip(*at[peer], strict=True), linewidth=1, label=f"peer {peer}")
    for peer, seconds, sign in drawn.done:
        height = max((round_ for when, round_ in at[peer] if when <= seconds), default=0)
        axes.text(seconds, height, sign, fontsize=8, weight="bold", ha="center", va="center")
    axes.grid(visible=True, alpha=0.3)
    legend = ", ".join(f"{sign} {what}" for what, sign in SIGNS.items())
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, title=legend.replace(", ", "\n"))
    figure.savefig(folder / "chaos.png", dpi=150)
    return True
