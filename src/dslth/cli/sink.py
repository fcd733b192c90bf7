"""``dslth sink``: a run's reports to another program, after the run."""

from pathlib import Path
from typing import Annotated

import typer

from dslth import config
from dslth.errors import DslthError, MissingFileError
from dslth.runs.folder import RunFolder
from dslth.show.console import out
from dslth.sinks import About, opened, parse

__all__ = ["sink"]


def _dashboard(wanted: bool) -> None:
    if wanted:
        print((config.shipped("grafana") / "dslth.json").read_text(encoding="utf-8"), end="")  # noqa: T201
        raise typer.Exit


def sink(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME[=WHERE]...", help="tensorboard, mlflow or parquet, and where its reports go."),
    ],
    grafana: Annotated[
        bool,
        typer.Option(
            "--grafana", is_eager=True, callback=_dashboard, help="Print a dashboard for Grafana, and nothing else."
        ),
    ] = False,
) -> None:
    """Give the reports of a run to another program, as --sink does while the run goes on."""
    for name in names:
        if parse(name)[0] == "prometheus":
            raise typer.BadParameter("prometheus shows a run while it goes on: dslth run --sink prometheus")
    folder = RunFolder(run)
    by_peer = folder.events()
    try:
        settings = config.load(run / "topology.yaml")
    except MissingFileError:  # reports that were collected
        settings = None
    events = sorted((event for events in by_peer.values() for event in events), key=lambda event: event.time)
    failed: list[str] = []
    with opened(names, About(run, len(by_peer), settings), failed=failed.append) as take:
        for event in events:
            take(event)
    if failed:
        raise DslthError(failed[0])
    out.print(f"{len(events):,} reports of {len(by_peer)} peers: {', '.join(names)}", soft_wrap=True)
