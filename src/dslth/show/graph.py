"""A graph for people: a table, a drawing in text, a PNG file."""

from collections import Counter
from pathlib import Path

import networkx as nx
from rich.table import Table

from dslth.errors import DslthError, OutputError
from dslth.show.tables import new_table
from dslth.topology import Topology

__all__ = ["draw", "draw_png", "topology_table"]

MOST_STEPS = 4_000_000
"""Peers times edges up to which the diameter is computed, which takes a second."""


def topology_table(topology: Topology) -> Table:
    """Show a graph's figures."""
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
    """Draw a graph in text: peers on a circle and dots for links; with 41 to 80 peers its adjacency matrix."""
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
    """Draw a graph into a PNG file; raises DslthError without matplotlib, OutputError if it cannot be written."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DslthError("pictures take matplotlib: pip install 'dslth[plot]'") from None
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
