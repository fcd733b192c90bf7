"""``dslth experiment``: a claim of the paper or of its theory, put to the test that a file describes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dslth.cli.options import Changes, JsonOption
from dslth.engines.base import end_on_signals
from dslth.errors import OutputError
from dslth.show.console import Terminal, err, out
from dslth.stop import Stop

if TYPE_CHECKING:
    from dslth.bench.experiments.plan import Plan

__all__ = ["do", "experiment"]


def experiment(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Experiment: a path, or a name that comes with dslth.")],
    changes: Annotated[Changes, "rounds", "graph", "partition", "data_dir"] = Changes(),
    quick: Annotated[bool, typer.Option("--quick", help="A small version, which takes seconds.")] = False,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to write or go on with [default: runs/experiment-NAME]."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Put a claim to the test: each variant with each seed, then a table and a picture.

    It can be interrupted: called again, it goes on with the cells that are not finished, or whose settings changed.
    Writes cells/, runs.csv and sums.csv with their .json, tables.md, and figure.png.
    """
    from dslth.bench.experiments import plan  # torch is heavy: loaded only when needed

    planned = plan.read(name).quickly() if quick else plan.read(name)
    stem = Path(name).stem
    folder = out_dir or Path("runs") / f"experiment-{stem}{'-quick' * quick}"
    do(planned, changes.overrides(), folder, f"dslth experiment {stem}" + " --quick" * quick, as_json=as_json)


def do(planned: "Plan", changes: Mapping[str, Any], folder: Path, command: str, *, as_json: bool) -> None:
    """Do the cells of a plan that are not finished, and show and write what is known then.

    ``changes`` are keys of a topology file that win over the plan's; ``command`` is kept with what it measured.
    """
    from dslth.bench.cells import Cells
    from dslth.bench.experiments import show, work

    cells = work.cells_of(planned, changes)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--out {folder} is not a folder; choose another name, or remove it")
    store = Cells(folder / "cells", command)
    stop = Stop()
    with end_on_signals(stop):
        done = work.do(cells, store, stop, lambda line: err.print(line, soft_wrap=True))
    if not done:
        err.print("interrupted before the first cell was finished")
        raise typer.Exit(130)
    show.write(planned, done, folder)
    if not show.plot(planned, done, folder):
        err.print("note: no figure; install matplotlib for it: pip install matplotlib")
    if as_json:
        print(json.dumps(show.as_json(planned, done)))  # noqa: T201
    else:
        page = out if out.is_terminal else Terminal(width=110)
        for table in show.tables(planned, done):
            page.print(table)
        out.print(f"written into {folder}", soft_wrap=True)
    if len(done) < len(cells):
        err.print("interrupted; the same command goes on")
        raise typer.Exit(130)
