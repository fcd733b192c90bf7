"""The timeline of a run, what happened to which peer when: a picture with a row per peer, and a table."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dslth.runs.summary import Happened, Summary
from dslth.show.tables import new_table, shortened

__all__ = ["MARKS", "Mark", "legend", "marks", "picture", "show"]

MARKS = {
    "lost": "l",
    "back": "b",
    "left": "v",
    "moved": "m",
    "resumed": "r",
    "skipped": "s",
    "unsaved": "u",
    "diverged": "d",
    "died": "x",
    "restarted": "^",
    "gave-up": "!",
    "finished": "|",
}
"""The letter of each happening in the picture."""
WIDTH = 70
MOST_ROWS = 40
OF_A_NEIGHBOUR = ("lost", "back", "left", "moved")


class Mark(NamedTuple):
    """Something that happened to a peer, some seconds after the start; ``sign`` is one character."""

    peer: int
    seconds: float
    sign: str


def marks(happenings: Iterable[Happened], start: float) -> list[Mark]:
    """Return the marks of a summary's happenings, each in the row of the peer that it happened to."""
    return [Mark(_whom(said), said.time - start, MARKS[said.what]) for said in happenings]


def _whom(said: Happened) -> int:
    return said.neighbour if said.what in OF_A_NEIGHBOUR and said.neighbour is not None else said.peer


def picture(peers: Iterable[int], happened: Iterable[Mark], seconds: float) -> str:
    """Draw a row per peer, time from left to right; marks of the same moment stand beside each other."""
    rows = {peer: ["·"] * WIDTH for peer in peers}
    ordered = sorted(happened, key=lambda mark: mark.seconds)
    columns = [min(WIDTH - 1, max(0, int(mark.seconds / max(seconds, 1e-9) * WIDTH))) for mark in ordered]
    for peer, first, sign in dict.fromkeys(
        (m.peer, column, m.sign) for m, column in zip(ordered, columns, strict=True)
    ):
        row = rows.get(peer, [])
        if row:
            row[next((i for i in range(first, WIDTH) if row[i] in ("·", sign)), WIDTH - 1)] = sign
    scale = f"0 s{f'{seconds:.1f} s':>{WIDTH - 3}}"
    return "\n".join([*(f"{peer:>5} {''.join(row)}" for peer, row in rows.items()), f"{'':5} {scale}"])


def legend(signs: Iterable[str]) -> str:
    """Return what the marks of a picture mean."""
    seen = set(signs)
    return ", ".join(f"{sign} {what}" for what, sign in MARKS.items() if sign in seen)


def show(summary: Summary, start: float | None) -> RenderableType | None:
    """Show a run's happenings, the newest 40 of them in words; None if there were none."""
    happenings = summary.happenings
    if not happenings:
        return None
    begin = happenings[0].time if start is None else start
    drawn = marks(happenings, begin)
    seconds = max(summary.seconds, *(mark.seconds for mark in drawn), 0.0)
    lines = picture([peer.id for peer in summary.peers], drawn, seconds)
    return Group(
        Text("\nwhat happened", style="bold"),
        Text(lines, no_wrap=True),
        Text(legend(mark.sign for mark in drawn), style="dim italic"),
        _table(happenings, begin),
    )


def _table(happenings: Sequence[Happened], start: float) -> Table:
    table = new_table("", "seconds", "peer", "round", "what", "detail")
    for column in table.columns[3:]:
        column.justify = "left"
    table.columns[4].no_wrap, table.columns[4].overflow = False, "fold"
    if earlier := happenings[:-MOST_ROWS]:
        counts = Counter(said.what for said in earlier).most_common()
        kinds = ", ".join(f"{what} {count}" for what, count in counts)
        table.add_row("", "", "", "…", f"{len(earlier)} before: {kinds}; --json has all")
    for said in happenings[-MOST_ROWS:]:
        what = said.what if said.neighbour is None else f"{said.what} {said.neighbour}"
        detail = shortened(said.detail, 200)
        table.add_row(f"{said.time - start:.1f}", str(said.peer), str(said.round), what, detail)
    return table
