"""What people see of a run: a table that lives while it goes on, and tables from a run folder's files alone."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import networkx as nx
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dslth.errors import ConfigError, OutputError
from dslth.run.events import Event, Finished, Joined, RoundReport
from dslth.run.folder import RunFolder
from dslth.run.summary import Summary, rounds_of
from dslth.show.tables import Fitted, new_table, shortened
from dslth.topology import Topology

__all__ = [
    "LiveTable",
    "amount",
    "decimal",
    "draw",
    "edge_table",
    "peer_table",
    "phase_table",
    "topology_table",
    "totals",
    "unlike",
]

BARS = "▁▂▃▄▅▆▇█"
MOST_STEPS = 4_000_000
"""Peers times edges up to which a diameter is worked out: a second."""
MOST_LAYERS = 20
MOST_REASONS = 20
MOST_EDGES = 10_000


# --- words and pictures ---------------------------------------------------------------------------------------------


def amount(n: float | None) -> str:
    """Write a number of bytes for people: ``13.2 kB``."""
    if n is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000 or unit == "GB":
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    raise AssertionError


def decimal(loss: float) -> str:
    """Write a loss, which may be huge or no number, in few characters."""
    return f"{loss:.3f}" if abs(loss) < 1e6 else f"{loss:.3g}"


def _thousands(n: int | None) -> str:
    return "–" if n is None else f"{n:,}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _spark(values: Sequence[float], width: int = 9) -> str:
    """Draw shares in 0 .. 1 as a row of bars, the last one at the right."""
    step = max(1, len(values) / width)
    points = [values[min(len(values) - 1, int((i + 1) * step) - 1)] for i in range(min(width, len(values)))]
    return "".join(BARS[min(7, int(8 * value))] if 0 <= value <= 1 else "?" for value in points)


def unlike(summary: Summary) -> str:
    """Say in a line that a run's peers computed with unlike processors; an empty text where they did not."""
    if len(summary.processors) < 2:
        return ""
    who = "; ".join(f"{name}: {_some(peers)}" for name, peers in summary.processors.items())
    return f"peers ran on unlike processors ({who}): their masks are not bit for bit those of a run on like ones"


class LiveTable:
    """A table of all peers that follows their reports."""

    def __init__(self, peers: int, rounds: int, title: str) -> None:
        self._rounds, self._title = rounds, title
        self._peers = {peer: _Row() for peer in range(peers)}
        self._sent: Counter[int] = Counter()

    def take(self, event: Event) -> None:
        """Follow a report."""
        if event.peer in self._peers and not (isinstance(event, RoundReport) and event.round >= self._rounds):
            self._peers[event.peer].take(event)
            self._sent[event.peer] += sum(link.message_sent for link in event.links.values())

    def line(self) -> str:
        """Say in one line how far the run is."""
        reports = [row.last for row in self._peers.values() if row.last]
        done = min((report.round + 1 for report in reports), default=0) if len(reports) == len(self._peers) else 0
        known = [report.accuracy_personal for report in reports if report.accuracy_personal is not None]
        mean, sent = _percent(fmean(known) if known else None), amount(sum(self._sent.values()))
        return f"round {done}/{self._rounds}, personal accuracy {mean}, sent {sent}"

    def __rich__(self) -> RenderableType:
        rows = list(self._peers.values())
        table = Fitted(
            self._title,
            {
                "peer": [f"{peer}{' ✓' if row.done else ''}" for peer, row in zip(self._peers, rows, strict=True)],
                "device": _told(row.device for row in rows),
                "round": [f"{row.rounds}/{self._rounds}" for row in rows],
                "loss": [decimal(row.last.loss) if row.last else "–" for row in rows],
                "personal": [_percent(row.personal[-1] if row.personal else None) for row in rows],
                "by round": [Text(_spark(row.personal), style="green") for row in rows],
                "global": [_percent(row.common) for row in rows],
                "sent": [amount(sent) for sent in (self._sent[peer] for peer in self._peers)],
                "missing": [_some(row.last.missing) if row.last else "" for row in rows],
            },
            spare=("loss", "round", "global", "by round", "device"),
        )
        return Group(table, Text(self.line(), style="dim"))


def _some(peers: Sequence[int]) -> str:
    return ", ".join(map(str, peers)) if len(peers) <= 3 else f"{len(peers)} peers"


class _Row:
    """What a table says of one peer, from its reports; of all but the last round only the accuracy is kept."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.last: RoundReport | None = None
        self.done = False
        self.common: float | None = None
        self.device = self.samples = ""
        self._shares: dict[int, float | None] = {}
        for event in events:
            self.take(event)

    def take(self, event: Event) -> None:
        """Follow a report; that of a round that was played again after a crash takes the first one's place."""
        if isinstance(event, Joined):
            self.device, self.samples = shortened(event.device), str(event.training_samples)
        elif isinstance(event, RoundReport):
            self._shares[event.round] = event.accuracy_personal
            if self.last is None or event.round >= self.last.round:
                self.last = event
                self.common = self.common if event.accuracy_global is None else event.accuracy_global
        self.done = isinstance(event, Finished)

    @property
    def rounds(self) -> int:
        """How many rounds were played."""
        return len(self._shares)

    @property
    def personal(self) -> list[float]:
        """Personal accuracies of the rounds after which it was evaluated, in order."""
        return [share for _, share in sorted(self._shares.items()) if share is not None]

    @property
    def density(self) -> str:
        """Density by layer."""
        return shortened(" ".join(f"{k:.2g}" for k in self.last.density[:MOST_LAYERS]), 60) if self.last else ""


def _told(values: Iterable[str]) -> list[str]:
    """Return a column only where it tells peers apart."""
    column = list(values)
    return column if len(set(column)) > 1 else [""] * len(column)


def peer_table(folder: RunFolder, summary: Summary) -> Fitted:
    """Show a run peer by peer; columns that would be empty, or alike for all devices, are left out."""
    events = folder.events()
    peers = summary.peers
    rows = [_Row(events[peer.id]) for peer in peers]
    refused: Counter[str] = Counter()
    for peer in peers:
        refused.update(peer.refused)
    return Fitted(
        f"{folder.path}: {summary.rounds} rounds",
        {
            "peer": [str(peer.id) for peer in peers],
            "device": _told(row.device for row in rows),
            "density": _told(row.density for row in rows),
            "samples": [row.samples for row in rows],
            "personal": [_percent(peer.accuracy_personal) for peer in peers],
            "by round": [Text(_spark(row.personal), style="green") for row in rows],
            "global": [_percent(peer.accuracy_global) for peer in peers],
            "payload": [amount(peer.payload_bytes_sent) for peer in peers],
            "messages": [amount(peer.message_bytes_sent) for peer in peers],
            "link": [amount(peer.link_bytes_sent) for peer in peers],
            "missing": [str(peer.missing or "") for peer in peers],
            "refused": [str(sum(peer.refused.values()) or "") for peer in peers],
            "ticket": [(peer.mask_digest or "–")[:6] for peer in peers],
        },
        spare=("ticket", "density", "samples", "by round", "link", "payload", "global", "device"),
        note="refused: " + ", ".join(f"{reason} {count}" for reason, count in refused.most_common(MOST_REASONS))
        if refused
        else "",
    )


def totals(summary: Summary) -> Table:
    """Show a run's totals, the three byte figures among them."""
    table = new_table("totals", "figure", "value")
    dense, first = 4 * summary.masked_weights, summary.seconds_to_first_round
    rows = {
        "personal accuracy, mean": _percent(summary.accuracy_personal),
        "global accuracy, mean": _percent(summary.accuracy_global),
        "seconds": f"{summary.seconds:.1f}",
        "seconds to the first round": "–" if first is None else f"{first:.1f}",
        "masked weights x directed edges": f"{summary.masked_weights:,} x {summary.directed_edges}",
        "payload bytes sent (encoded masks)": f"{summary.payload_bytes_sent:,}",
        "message bytes sent (and headers, hellos)": f"{summary.message_bytes_sent:,}",
        "link bytes sent (what TCP carried)": "–"
        if summary.link_bytes_sent is None
        else f"{summary.link_bytes_sent:,}",
        "bits per weight, edge and round": f"{summary.bits_per_weight_per_round or 0:.4f} (dense float32: 32)",
        "one dense float32 exchange, all edges": amount(dense * summary.directed_edges),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def phase_table(folder: RunFolder) -> Fitted:
    """Show where the time went, mean seconds a round."""
    rounds = {peer: played for peer, events in folder.events().items() if (played := rounds_of(events))}
    names = ("compute", "encode", "wait", "decode", "fine_tune", "evaluate")
    means = {
        name.replace("_", "-"): [
            f"{sum(getattr(event.seconds, name) for event in played) / len(played):.4f}" for played in rounds.values()
        ]
        for name in names
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
            cells = (_thousands(total[column]) for column in ("payload", "messages", "link"))
            table.add_row(f"{peer} → {neighbour}", *cells)
    return table


# --- topologies -----------------------------------------------------------------------------------------------------


def topology_table(topology: Topology) -> Table:
    """Show what a graph is like."""
    graph = topology.to_networkx()
    degrees = [degree for _, degree in graph.degree]
    table = new_table("graph", "figure", "value")
    counts = Counter(degrees)
    for name, value in {
        "nodes": str(topology.peers),
        "edges": str(len(topology.edges)),
        "degree, least / mean / most": f"{min(degrees)} / {sum(degrees) / len(degrees):.2f} / {max(degrees)}",
        "peers by degree": ", ".join(f"{counts[d]} with {d}" for d in sorted(counts)),
        "diameter": str(nx.diameter(graph)) if topology.peers * len(topology.edges) <= MOST_STEPS else "–",
        "digest": topology.digest,
    }.items():
        table.add_row(name, value)
    table.columns[1].no_wrap = False  # a graph may have many degrees
    return table


def draw(topology: Topology, width: int = 64, height: int = 25) -> str:
    """Draw a graph in text: peers on a circle and dots for links; from 41 to 80 peers its adjacency matrix."""
    if topology.peers > 80:
        return "more than 80 peers are too many to draw in text; --png FILE draws them"
    if topology.peers > 40:
        linked = set(topology.edges)
        rows = range(topology.peers)
        return "\n".join("".join("█" if (min(i, j), max(i, j)) in linked else "·" for j in rows) for i in rows)
    places = nx.circular_layout(topology.to_networkx())
    at = {
        peer: (round((x + 1) / 2 * (width - 4)) + 1, round((1 - y) / 2 * (height - 1)))
        for peer, (x, y) in places.items()
    }
    canvas = [[" "] * width for _ in range(height)]
    for a, b in topology.edges:
        (x0, y0), (x1, y1) = at[a], at[b]
        steps = max(abs(x1 - x0), 2 * abs(y1 - y0), 1)
        for step in range(1, steps):
            canvas[round(y0 + (y1 - y0) * step / steps)][round(x0 + (x1 - x0) * step / steps)] = "·"
    for peer, (x, y) in at.items():
        for offset, character in enumerate(str(peer)):
            canvas[y][x + offset] = character
    return "\n".join("".join(row).rstrip() for row in canvas)


def draw_png(topology: Topology, path: Path) -> None:
    """Draw a graph into a PNG file; ConfigError without matplotlib, OutputError where the file cannot be written."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--png needs matplotlib: pip install matplotlib") from None
    graph = topology.to_networkx()
    places = nx.kamada_kawai_layout(graph) if topology.peers <= 100 else nx.spring_layout(graph, seed=0)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal")
    for edge in topology.edges:
        axes.plot(*zip(*(places[end] for end in edge), strict=True), color="0.7", linewidth=1, zorder=1)
    x, y = zip(*(places[peer] for peer in graph), strict=True)
    axes.scatter(x, y, s=320, color="#2a6f97", zorder=2)
    for peer in graph:
        axes.text(
            places[peer][0], places[peer][1], str(peer), color="white", ha="center", va="center", fontsize=9, zorder=3
        )
    try:
        figure.savefig(path, dpi=150, format="png")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
