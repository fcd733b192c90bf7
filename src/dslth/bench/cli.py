"""``dslth bench``: the command line of the benchmarks; what measures is loaded when it is asked for."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dslth import config, launcher, topology
from dslth.errors import MissingFileError, OutputError
from dslth.runfolder import RunFolder

__all__ = ["bench_app"]

bench_app = typer.Typer(
    help="Measure: communication cost, codecs.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
err = Console(stderr=True)


@bench_app.callback()
def _root() -> None:
    pass


@bench_app.command()
def comm(
    topology_file: Annotated[
        str, typer.Option("--topology", "-t", metavar="FILE", help="Topology file: a path, or a name that is shipped.")
    ],
    rounds: Annotated[int | None, typer.Option(min=1, help="Number of rounds, in place of the file's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed, in place of the file's.")] = None,
    graph: Annotated[Path | None, typer.Option(metavar="FILE", help="Graph in place of the file's.")] = None,
    partition: Annotated[Path | None, typer.Option(metavar="FILE", help="Counts table for the partition.")] = None,
    preset: Annotated[str | None, typer.Option(help="Settings that the file's are laid on: signed or mce-pl.")] = None,
    data_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of data sets.")] = None,
    rows: Annotated[str | None, typer.Option(metavar="A,B,C", help="Rows to run [default: all].")] = None,
    target: Annotated[
        float | None, typer.Option(min=0, max=1, help="Say the bytes to this mean personal accuracy, too.")
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Run each baseline at several learning rates.")] = False,
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write [default: a new one under runs/].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Compare MCE-PL with each codec, without exchange, its ablations, and dense or sparse baselines.

    Every row is a run of all peers on this machine over real sockets. Writes comm.csv, comm.json, comm.md, accuracy.png
    and bits.png besides the rows' run folders.
    """
    experiment: dict[str, Any] = {"rounds": rounds, "seed": seed, "preset": preset}
    experiment = {key: value for key, value in experiment.items() if value is not None}
    if data_dir is not None and not data_dir.is_dir():
        raise MissingFileError(f"--data-dir {data_dir}: no such folder")
    wanted_data = {
        "partition": partition and {"kind": "counts", "table": config.read_counts(partition)},
        "folder": data_dir and str(data_dir.resolve()),
    }
    experiment["data"] = {key: value for key, value in wanted_data.items() if value}
    overrides = {"experiment": experiment} | (
        {"graph": {"kind": "file", "file": str(graph.resolve())}} if graph is not None else {}
    )
    settings = config.load(topology_file, overrides)
    graph_of_peers = topology.build(settings.graph, settings.experiment.seed)
    if note := launcher.preflight(settings, graph_of_peers):
        err.print(f"note: {note}", highlight=False)
    if out_dir is not None and out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise OutputError(f"--out {out_dir} is there already and not empty; choose another folder, or remove it")
    folder = out_dir or RunFolder.fresh(f"bench-comm-{Path(topology_file).stem}").path

    from dslth.bench import comm, show  # torch is heavy: only who measures loads it

    selected = comm.chosen(rows)
    measured = []
    for figures in comm.run_rows(selected, settings, graph_of_peers, folder / "rows", tune=tune, say=_say):
        measured.append(figures)
        compared = comm.compare(measured, target)
        show.write(compared, settings.model_dump(mode="json"), target, folder)
    if not measured:
        err.print("interrupted before the first row was done", highlight=False)
        raise typer.Exit(130)
    if not show.plot(compared, folder):
        err.print("note: no plots, they need matplotlib: pip install 'dslth[plot]'", highlight=False)
    if as_json:
        print(json.dumps(show.as_json(compared, settings.model_dump(mode="json"), target)))  # noqa: T201
    else:
        out = Console()
        out = out if out.is_terminal else Console(width=100)
        for table in show.tables(compared, target):
            out.print(table)
        out.print(f"written into {folder}", highlight=False)
    if len(measured) < len(selected):
        err.print("interrupted", highlight=False)
        raise typer.Exit(130)


@bench_app.command()
def codec(
    weights: Annotated[int, typer.Option(min=1000, help="Weights of a mask.")] = 1_200_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the masks.")] = 1,
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write codec.csv and codec.json into.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure size against entropy and speed of each mask codec, beside zstd and a sparse bit code."""
    from dslth.bench import codec as measured

    figures = measured.measure(weights, seed, _say)
    if out_dir is not None:
        measured.write(figures, out_dir)
    if as_json:
        print(json.dumps(measured.rows(figures)))  # noqa: T201
    else:
        Console().print(measured.table(figures))


def _say(line: str) -> None:
    err.print(line, highlight=False)
