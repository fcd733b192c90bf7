"""``dslth bench links``: how long it takes to learn over thin links, in virtual time.

Rows of ``dslth bench comm`` over several links, with the batched engine. In each round every peer waits for all its
neighbours, whatever that takes, so that a link changes when something is learned and not what.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dslth.bench import results
from dslth.bench.comm import Row, measure
from dslth.config import LinkName, Mode, NetworkConfig, RunConfig
from dslth.engines.batched import Batched
from dslth.engines.supervisor import run_local
from dslth.runs.events import RoundReport
from dslth.runs.folder import RunFolder
from dslth.show.tables import Fitted
from dslth.show.words import percent
from dslth.stop import Stop
from dslth.topology import Topology

__all__ = ["OverLink", "as_json", "plot", "run_links", "table", "write"]

JOIN_SECONDS = 1e9


@dataclass(frozen=True)
class OverLink:
    """One row over one link; seconds are virtual, from the launch.

    ``curve`` has a point for each evaluated round: when the last peer had ended it, and the mean personal accuracy;
    ``seconds_to_target`` is when that first reached the target, None if it did not.
    """

    link: LinkName
    row: str
    accuracy_personal: float
    message_bytes: int
    seconds: float
    round_seconds: float
    seconds_to_target: float | None
    curve: tuple[tuple[float, float], ...]


def run_links(
    links: Sequence[LinkName],
    rows: Sequence[Row],
    run: RunConfig,
    topology: Topology,
    target: float,
    folder: Path,
    stop: Stop,
    say: Callable[[str], None],
) -> Iterator[OverLink]:
    """Run each row over each link, and yield what came of it, until ``stop``, or an interruption, is set.

    Peers with a link of their own keep it. Raises DslthError where a run fails.
    """
    patient = run.experiment.model_copy(update={"mode": Mode.SYNC, "deadline": "none"})
    for link in links:
        for row in rows:
            settings = row.settings(run.model_copy(update={"experiment": patient}))
            settings = settings.model_copy(update={"network": NetworkConfig(link=link)})
            place = RunFolder(folder / f"{link}-{row.name}")
            if stop.is_set():
                return
            outcome = run_local(settings, topology, place, engine=Batched, method=row.method, join_timeout=JOIN_SECONDS)
            if outcome.interrupted:
                return
            if outcome.failure:
                raise outcome.failure
            found = _over(link, row, place, target)
            say(
                f"{link}, {row.name}: personal accuracy {percent(found.accuracy_personal)} after {found.seconds:,.1f} s"
            )
            yield found


def _over(link: LinkName, row: Row, folder: RunFolder, target: float) -> OverLink:
    """Work out a row's figures from its run folder."""
    figures, launched = measure(row, folder), folder.launched() or 0.0
    ends: dict[int, float] = {}
    for said in folder.events().values():
        for report in said:
            if isinstance(report, RoundReport):
                ends[report.round] = max(ends.get(report.round, 0.0), report.time - launched)
    curve = tuple((ends[round_], accuracy) for round_, _, accuracy in figures.curve)
    return OverLink(
        link,
        row.name,
        figures.accuracy_personal,
        figures.message_bytes,
        ends[max(ends)],
        ends[max(ends)] / len(ends),
        next((seconds for seconds, accuracy in curve if accuracy >= target), None),
        curve,
    )


def table(found: Sequence[OverLink], target: float) -> Fitted:
    """Show what was measured."""
    return Fitted(
        "learning over links, in virtual time",
        {
            "link": [each.link for each in found],
            "row": [each.row for each in found],
            "personal": [percent(each.accuracy_personal) for each in found],
            "message bytes": [f"{each.message_bytes:,}" for each in found],
            "a round": [_seconds(each.round_seconds) for each in found],
            f"to {100 * target:g} %": [_seconds(each.seconds_to_target) for each in found],
            "to the end": [_seconds(each.seconds) for each in found],
        },
        note="Bytes sent by all peers; mean personal accuracy, of baselines before or after the exchange, where "
        "it ends better. Links are those of dslth.transport.links, one for each edge and direction.",
    )


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def as_json(found: Sequence[OverLink], run: RunConfig, target: float) -> dict[str, Any]:
    """Return everything, as ``--json`` prints it."""
    return {"settings": run.model_dump(mode="json"), "target": target, "rows": [*map(asdict, found)]}


def write(found: Sequence[OverLink], run: RunConfig, target: float, folder: Path) -> None:
    """Write ``links.json``, and ``links.csv`` without the curves; raises OutputError."""
    results.write(folder, "links", as_json(found, run, target), [*map(asdict, found)])


def plot(found: Sequence[OverLink], folder: Path) -> bool:
    """Draw ``links.png``, accuracy over virtual time; False, and no plot, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    picture = Figure(figsize=(9, 5), layout="constrained")
    axes = picture.add_subplot(xscale="log", xlabel="seconds, virtual", ylabel="mean personal accuracy")
    links, rows = (list(dict.fromkeys(names)) for names in zip(*((each.link, each.row) for each in found), strict=True))
    for each in found:
        style = ("-", "--", ":", "-.")[rows.index(each.row) % 4]
        points = [(seconds, accuracy) for seconds, accuracy in each.curve if seconds > 0]
        axes.plot(
            [seconds for seconds, _ in points],
            [accuracy for _, accuracy in points],
            style,
            color=f"C{links.index(each.link)}",
            label=f"{each.link}, {each.row}",
        )
    axes.grid(visible=True, alpha=0.3)
    picture.legend(loc="outside right upper", fontsize=8, frameon=False)
    picture.savefig(folder / "links.png", dpi=150)
    return True
