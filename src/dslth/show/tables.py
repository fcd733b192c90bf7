"""Tables for a terminal: one style, and never wider than there is room."""

from collections.abc import Collection, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

__all__ = ["Fitted", "new_table", "shortened"]

BOUNDLESS = 10_000


def new_table(title: str, *names: str) -> Table:
    """Make an empty table in the style of all reports."""
    table = Table(
        title=title, title_justify="left", pad_edge=False, title_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def shortened(text: str, width: int = 16) -> str:
    """Cut a name that somebody else chose."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


class Fitted:
    """A table of columns, without those that have nothing to say, and without as many as there is no room for.

    ``spare`` names the columns that may be left out, the first one first; a line below says which were. ``note`` stands
    below the table and wraps.
    """

    def __init__(
        self, title: str, columns: Mapping[str, Sequence[str | Text]], spare: Collection[str] = (), note: str = ""
    ) -> None:
        self._title, self._note = title, note
        self._columns = {name: cells for name, cells in columns.items() if any(str(cell) for cell in cells)}
        self._spare = [name for name in spare if name in self._columns]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render what there is room for."""
        left_out: list[str] = []
        table = self._table(left_out)
        while self._width(console, options, table) > options.max_width and len(left_out) < len(self._spare):
            left_out.append(self._spare[len(left_out)])
            table = self._table(left_out)
        yield table
        if left_out:
            yield Text(f"left out, the terminal is too narrow: {', '.join(left_out)}", style="dim")
        if self._note:
            yield Text(self._note, style="dim italic")

    def _width(self, console: Console, options: ConsoleOptions, table: Table) -> int:
        return console.measure(table, options=options.update(max_width=BOUNDLESS)).maximum

    def _table(self, left_out: Collection[str]) -> Table:
        shown = {name: cells for name, cells in self._columns.items() if name not in left_out}
        table = new_table(self._title, *shown)
        for row in zip(*shown.values(), strict=True):
            table.add_row(*row)
        return table
