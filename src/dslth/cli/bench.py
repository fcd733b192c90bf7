"""``dslth bench``: the command line of the benchmarks, which are imported only when they run."""

import json
import threading
from pathlib import Path
from typing import Annotated

import typer

from dslth.cli import options, stress
from dslth.cli.app import App
from dslth.cli.options import Changes, JsonOption, OutOption, TopologyOption, TransportOption
from dslth.config import TransportName
from dslth.engines.base import end_on_signals
from dslth.show.console import Terminal, err, out

__all__ = ["bench_app"]

bench_app = App(help="Measure: communication cost, codecs, faults.", no_args_is_help=True)
for command in (stress.chaos, stress.resume, stress.simulate, stress.soak, stress.fuzz):
    bench_app.command()(command)


@bench_app.command()
def comm(
    topology_file: TopologyOption = "ring",
    changes: Annotated[Changes, "rounds", "seed", "graph", "partition", "preset", "data_dir"] = Changes(),
    rows: Annotated[str | None, typer.Option(metavar="A,B,C", help="Rows to run [default: all].")] = None,
    target: Annotated[
        float | None, typer.Option(min=0, max=1, help="Show the bytes to this mean personal accuracy, too.")
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Run each baseline at several learning rates.")] = False,
    transport: TransportOption = TransportName.ZEROMQ,
    out_dir: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare MCE-PL with each codec, without exchange, its ablations, and dense or sparse baselines.

    Every row is a run of all peers on this machine; over memory there are no link bytes.
    Writes comm.csv, comm.json, comm.md, accuracy.png and bits.png beside the rows' run folders.
    """
    settings, graph = options.read(topology_file, changes)
    options.look_at_data(settings, graph)

    from dslth.bench import comm, show  # torch is heavy: loaded only when needed

    selected = comm.chosen(rows)
    folder = options.new_folder(out_dir, f"bench-comm-{Path(topology_file).stem}").path
    stop = threading.Event()
    measured = []
    with end_on_signals(stop):  # between two rows too: finished rows are written
        for figures in comm.run_rows(
            selected, settings, graph, folder / "rows", stop, transport=transport, tune=tune, say=_say
        ):
            measured.append(figures)
            compared = comm.compare(measured, target)
            show.write(compared, settings.model_dump(mode="json"), target, folder)
    if not measured:
        err.print("interrupted before the first row was done")
        raise typer.Exit(130)
    if not show.plot(compared, folder):
        err.print("note: no plots, they need matplotlib: pip install matplotlib")
    if as_json:
        print(json.dumps(show.as_json(compared, settings.model_dump(mode="json"), target)))  # noqa: T201
    else:
        page = out if out.is_terminal else Terminal(width=100)
        for table in show.tables(compared, target):
            page.print(table)
        out.print(f"written into {folder}", soft_wrap=True)
    if len(measured) < len(selected):
        err.print("interrupted")
        raise typer.Exit(130)


@bench_app.command()
def codec(
    weights: Annotated[int, typer.Option(min=1000, help="Weights of a mask.")] = 1_200_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the masks.")] = 1,
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write codec.csv and codec.json into.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure size against entropy and speed of each mask codec, beside zstd and a sparse bit code."""
    if out_dir is not None:
        options.new_folder(out_dir, "codec")

    from dslth.bench import codec as measured

    figures = measured.measure(weights, seed, _say)
    if out_dir is not None:
        measured.write(figures, out_dir)
    if as_json:
        print(json.dumps(measured.rows(figures)))  # noqa: T201
    else:
        out.print(measured.table(figures))


def _say(line: str) -> None:
    err.print(line)
