"""``dslth inspect`` and ``dslth topology show``: a run folder, a graph."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dslth import topology
from dslth.cli import options, showing
from dslth.cli.app import App
from dslth.cli.options import Changes, JsonOption
from dslth.runs.folder import RunFolder
from dslth.runs.summary import summarise
from dslth.show import tables
from dslth.show.console import out
from dslth.show.graph import draw, draw_png, topology_table
from dslth.topology import Topology

__all__ = ["inspect", "topology_app"]

topology_app = App(help="Look at topology and graph files.", no_args_is_help=True)


def inspect(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    edges: Annotated[bool, typer.Option("--edges", help="Show the bytes of every directed edge as well.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a run again, from its run folder's files alone; also a run that is still going on."""
    folder = RunFolder(run_dir)
    summary = summarise(folder)
    if as_json:
        print(summary.to_json())  # noqa: T201
        return
    showing.show(folder, summary)
    out.print(tables.phase_table(folder))
    if edges:
        out.print(tables.edge_table(folder))


@topology_app.command()
def show(
    file: Annotated[
        str, typer.Argument(help="A topology file, the name of one that comes with dslth, or a graph file.")
    ],
    changes: Annotated[Changes, "seed"] = Changes(),
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the graph into a PNG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print nodes, edges and degrees as JSON.")] = False,
) -> None:
    """Print nodes, edges, degrees and diameter of a graph, and draw it."""
    graph = _graph(file, changes)
    if as_json:
        figures = {"peers": graph.peers, "edges": graph.edges, "digest": graph.digest}
        print(json.dumps(figures | {"neighbours": [graph.neighbours(peer) for peer in range(graph.peers)]}))  # noqa: T201
        return
    out.print(topology_table(graph))
    print(draw(graph))  # noqa: T201
    if png is not None:
        draw_png(graph, png)
        out.print(f"drawn into {png}")


def _graph(file: str, changes: Changes) -> Topology:
    if Path(file).is_file() and Path(file).suffix not in (".yaml", ".yml"):
        return topology.read_graph(Path(file))
    settings, graph = options.read(file, changes)
    settings.check_peers(graph.peers)
    return graph
