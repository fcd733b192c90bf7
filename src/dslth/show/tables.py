"""Tables of a run, from its run folder's files: in one style, and never wider than the terminal."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from dslth.config import Phase
from dslth.runs.events import Event, Finished, Joined, Noticed, RoundReport
from dslth.runs.folder import RunFolder
from dslth.runs.summary import Summary, rounds_of
from dslth.show.words import amount, percent, refusal, spark, thousands

__all__ = [
    "Fitted",
    "Row",
    "edge_table",
    "new_table",
    "peer_table",
    "phase_table",
    "shortened",
    "totals",
    "where_unlike",
]

BOUNDLESS = 10_000
MOST_LAYERS = 20
MOST_REASONS = 20
MOST_EDGES = 10_000
ENDED = ("died", "gave-up")
"""Happenings after which a peer does nothing until it is heard again."""

# --- style ----------------------------------------------------------------------------------------------------------


def new_table(title: str, *names: str) -> Table:
    """Make an empty table in the style of all reports."""
    table = Table(
        title=title, title_justify="left", pad_edge=False, title_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def shortened(text: str, width: int = 16) -> str:
    """Cut a text to at most ``width`` characters."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


class Fitted:
    """A table without empty columns, and with as many others as there is room for.

    ``spare`` names the columns that may be left out, the first one first; a line below the table names those that were.
    ``note`` stands below the table and wraps. Where there still is no room, the table is continued below, so that no
    figure is cut.
    """

    def __init__(
        self, title: str, columns: Mapping[str, Sequence[str | Text]], spare: Collection[str] = (), note: str = ""
    ) -> None:
        self._title, self._note = title, note
        self._columns = {name: cells for name, cells in columns.items() if any(str(cell) for cell in cells)}
        self._spare = [name for name in spare if name in self._columns]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the columns that there is room for."""
        left_out: list[str] = []
        table = self._table(left_out)
        while self._width(console, options, table) > options.max_width and len(left_out) < len(self._spare):
            left_out.append(self._spare[len(left_out)])
            table = self._table(left_out)
        yield from self._broken(console, options, left_out)
        if left_out:
            yield Text(f"left out, the terminal is too narrow: {', '.join(left_out)}", style="dim")
        if self._note:
            yield Text(self._note, style="dim italic")

    def _broken(self, console: Console, options: ConsoleOptions, left_out: Sequence[str]) -> Iterator[Table]:
        """Yield the table in as many parts as it takes; each has the first column."""
        first, *others = [name for name in self._columns if name not in left_out] or [""]
        part: list[str] = []
        for name in others:
            without = set(self._columns) - {first, *part, name}
            if part and self._width(console, options, self._table(without)) > options.max_width:
                yield self._table(set(self._columns) - {first, *part})
                part = []
            part.append(name)
        yield self._table(set(self._columns) - {first, *part})

    def _width(self, console: Console, options: ConsoleOptions, table: Table) -> int:
        return console.measure(table, options=options.update(max_width=BOUNDLESS)).maximum

    def _table(self, left_out: Collection[str]) -> Table:
        shown = {name: cells for name, cells in self._columns.items() if name not in left_out}
        table = new_table(self._title, *shown)
        for row in zip(*shown.values(), strict=True):
            table.add_row(*row)
        return table


# --- a run ----------------------------------------------------------------------------------------------------------


class Row:
    """One peer's row of a table, from its reports; of all but the last round only the accuracy is kept."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.last: RoundReport | None = None
        self.done = False
        self.common: float | None = None
        self.device = self.samples = self.trouble = ""
        self._shares: dict[int, float | None] = {}
        for event in events:
            self.take(event)

    def take(self, event: Event) -> None:
        """Follow a report; one of a round that is played again after a crash replaces the first one."""
        if isinstance(event, Joined):
            self.device, self.samples = shortened(event.device), str(event.training_samples)
        elif isinstance(event, RoundReport):
            self._shares[event.round] = event.accuracy_personal
            if self.last is None or event.round >= self.last.round:
                self.last = event
                self.common = self.common if event.accuracy_global is None else event.accuracy_global
        self.done = isinstance(event, Finished)
        self.trouble = event.what if isinstance(event, Noticed) and event.what in ENDED else ""

    @property
    def rounds(self) -> int:
        """Number of rounds played."""
        return len(self._shares)

    @property
    def personal(self) -> list[float]:
        """Personal accuracies of the rounds after which it was evaluated, in order."""
        return [share for _, share in sorted(self._shares.items()) if share is not None]

    @property
    def density(self) -> str:
        """Density by layer."""
        return shortened(" ".join(f"{k:.2g}" for k in self.last.density[:MOST_LAYERS]), 60) if self.last else ""


def where_unlike(values: Iterable[str]) -> list[str]:
    """Return a column of texts, all of them empty if none differs."""
    column = list(values)
    return column if len(set(column)) > 1 else [""] * len(column)


def peer_table(folder: RunFolder, summary: Summary) -> Fitted:
    """Show a run peer by peer, without columns that would be empty, or the same for all devices."""
    events = folder.events()
    peers = summary.peers
    rows = [Row(events[peer.id]) for peer in peers]
    refused: Counter[str] = Counter()
    for peer in peers:
        refused.update(peer.refused)
    return Fitted(
        f"{folder.path}: {summary.rounds} rounds",
        {
            "peer": [str(peer.id) for peer in peers],
            "device": where_unlike(row.device for row in rows),
            "density": where_unlike(row.density for row in rows),
            "samples": [row.samples for row in rows],
            "personal": [percent(peer.accuracy_personal) for peer in peers],
            "by round": [Text(spark(row.personal), style="green") for row in rows],
            "global": [percent(peer.accuracy_global) for peer in peers],
            "payload": [amount(peer.payload_bytes_sent) for peer in peers],
            "messages": [amount(peer.message_bytes_sent) for peer in peers],
            "link": [amount(peer.link_bytes_sent) for peer in peers],
            "missing": [str(peer.missing or "") for peer in peers],
            "refused": [str(sum(peer.refused.values()) or "") for peer in peers],
            "ticket": [(peer.mask_digest or "–")[:6] for peer in peers],
        },
        spare=("ticket", "density", "samples", "by round", "link", "payload", "global", "device"),
        note="\n".join(f"refused: {refusal(*counted)}" for counted in refused.most_common(MOST_REASONS)),
    )


def totals(summary: Summary, *, virtual: bool = False) -> Table:
    """Show a run's totals, the three byte figures among them; ``virtual``: its seconds are no real ones."""
    table = new_table("totals", "figure", "value")
    dense, first = 4 * summary.masked_weights, summary.seconds_to_first_round
    seconds = "virtual seconds" if virtual else "seconds"
    rows = {
        "personal accuracy, mean": percent(summary.accuracy_personal),
        "global accuracy, mean": percent(summary.accuracy_global),
        seconds: f"{summary.seconds:.1f}",
        f"{seconds} to the first round": "–" if first is None else f"{first:.1f}",
        "masked weights x directed edges": f"{summary.masked_weights:,} x {summary.directed_edges}",
        "payload bytes sent (encoded masks)": thousands(summary.payload_bytes_sent),
        "message bytes sent (and headers, hellos)": thousands(summary.message_bytes_sent),
        "link bytes sent (what TCP carried)": thousands(summary.link_bytes_sent),
        "payload bits per weight, edge and round": _bits(summary.payload_bits_per_weight_per_round),
        "message bits per weight, edge and round": _bits(summary.message_bits_per_weight_per_round),
        "one dense float32 exchange, all edges": amount(dense * summary.directed_edges),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _bits(bits: float | None) -> str:
    return "–" if bits is None else f"{bits:.4f} (dense float32: 32)"


def phase_table(folder: RunFolder) -> Fitted:
    """Show what the time was spent on, in mean seconds per round."""
    rounds = {peer: played for peer, events in folder.events().items() if (played := rounds_of(events))}
    means = {
        name.replace("_", "-"): [
            f"{sum(getattr(event.seconds, name) for event in played) / len(played):.4f}" for played in rounds.values()
        ]
        for name in Phase
    }
    memory = [amount(played[-1].memory_bytes) for played in rounds.values()]
    columns = {"peer": [str(peer) for peer in rounds], **means, "memory": memory}
    return Fitted("seconds a round", columns, spare=("memory", "evaluate"))


def edge_table(folder: RunFolder) -> Table:
    """Show the bytes of every directed edge, of 10,000 at most."""
    table = new_table("bytes by edge", "edge", "payload", "messages", "link")
    for peer, events in folder.events().items():
        sums: defaultdict[int, Counter[str]] = defaultdict(Counter)
        for event in events:
            for neighbour, link in event.links.items():
                sums[neighbour].update(payload=link.payload_sent, messages=link.message_sent, link=link.link_sent or 0)
        for neighbour, total in sorted(sums.items())[: max(0, MOST_EDGES - table.row_count)]:
            cells = (thousands(total[column]) for column in ("payload", "messages", "link"))
            table.add_row(f"{peer} → {neighbour}", *cells)
    return table
