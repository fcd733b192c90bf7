"""``dslth collect``: the reports of peers that run elsewhere."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from dslth import limits
from dslth.cli import keys, options, showing
from dslth.cli.keys import KeyOptions
from dslth.cli.options import Changes, JsonOption, SinksOption, TopologyArgument
from dslth.deploy import reports
from dslth.deploy.collector import Collector
from dslth.engines.base import end_on_signals
from dslth.engines.inbox import Inbox
from dslth.errors import MissingFileError
from dslth.runs.folder import RunFolder
from dslth.runs.summary import PeerSummary, check_played, summarise
from dslth.show.console import err
from dslth.show.live import LiveTable, follow
from dslth.sinks import About, opened
from dslth.stop import Stop

__all__ = ["collect"]


def collect(
    topology_file: TopologyArgument,
    changes: Annotated[Changes, "rounds"] = Changes(),
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where peers' --reports go, as in tcp://*:47200.")
    ] = "tcp://127.0.0.1:47200",
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder to write [default: runs/NAME].")
    ] = None,
    patience: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for the next report before giving up.")
    ] = 600.0,
    key_options: KeyOptions = KeyOptions(),
    sinks: SinksOption = None,
    as_json: JsonOption = False,
) -> None:
    """Collect the reports of peers that run elsewhere, show them, and end when all peers have finished.

    Restarted on the folder of a run that has not finished, it continues there.
    """
    settings, graph = options.read(topology_file, changes)
    limits.provide(graph)
    folder = RunFolder(out_dir or Path("runs") / Path(topology_file).stem)
    table = LiveTable(graph.peers, settings.experiment.rounds, showing.title(topology_file, settings))
    about = About(folder.path, graph.peers, settings)
    stop = Stop()
    how = keys.secured(settings, topology_file, [listen], key_options)
    with end_on_signals(stop), folder.owned():
        mine = reports.collector_keys(how.network, graph.peers, patience, stop, make=key_options.keys_dir is not None)
        inbox = Inbox(listen, graph.peers, mine)
        try:
            collector = Collector(settings, graph, folder)  # which may start the folder over
            try:
                with options.orderly(), follow(table, quiet=as_json) as show, opened(sinks or (), about, show) as watch:
                    collector.collect(inbox, stop, watch, patience)
            finally:
                collector.close()
                peers = _sum_up(folder, as_json=as_json)
        finally:
            inbox.close()
    if refused := inbox.refused():
        counts = ", ".join(f"{reason} {count}" for reason, count in refused.items())
        err.print(f"note: reports refused: {counts}", soft_wrap=True)
    if stop.is_set():
        raise typer.Exit(130)
    check_played(peers)


def _sum_up(folder: RunFolder, *, as_json: bool) -> Sequence[PeerSummary]:
    """Show and write the summary of a folder that has reports; return its peers."""
    with suppress(MissingFileError):
        summary = summarise(folder)
        if as_json:
            print(summary.to_json())  # noqa: T201
        else:
            showing.show(folder, summary)
        folder.write_summary(summary)
        return summary.peers
    return ()
