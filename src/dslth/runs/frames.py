"""The reports of a run as rows of tables."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dslth.errors import DslthError
from dslth.runs.events import RoundReport

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["frame", "links", "rounds"]


def frame(rows: Iterable[dict[str, Any]], first: list[str]) -> "pd.DataFrame":
    """Return rows as a DataFrame, sorted by its ``first`` columns; raises DslthError without pandas."""
    try:
        import pandas as pd
    except ImportError:
        raise DslthError("tables of a run take pandas: pip install 'dslth[tables]'") from None
    table = pd.DataFrame(list(rows))
    if table.empty:
        return pd.DataFrame(columns=first)
    return table.sort_values(first, ignore_index=True)


def rounds(reports: Iterable[RoundReport]) -> Iterator[dict[str, Any]]:
    """Yield a row for each peer and round; an accuracy is NaN where it was not measured."""
    for report in reports:
        stats = report.links.values()
        yield {
            "peer": report.peer,
            "round": report.round,
            "time": report.time,
            "loss": report.loss,
            "accuracy_personal": _or_nan(report.accuracy_personal),
            "accuracy_global": _or_nan(report.accuracy_global),
            "payload_sent": sum(link.payload_sent for link in stats),
            "message_sent": sum(link.message_sent for link in stats),
            "missing": len(report.missing),
            "memory_bytes": report.memory_bytes,
            "mask_digest": report.mask_digest,
            **{f"seconds_{phase}": seconds for phase, seconds in report.seconds.model_dump().items()},
        }


def links(reports: Iterable[RoundReport]) -> Iterator[dict[str, Any]]:
    """Yield a row for each peer, round and neighbour."""
    for report in reports:
        for neighbour, stats in report.links.items():
            yield {"peer": report.peer, "round": report.round, "neighbour": neighbour, **stats.model_dump()}


def _or_nan(share: float | None) -> float:
    return float("nan") if share is None else share
