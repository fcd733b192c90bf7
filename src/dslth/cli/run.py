"""``dslth run``: all peers of a topology on this machine, or in a Ray cluster."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dslth.cli import keys, options, showing
from dslth.cli.options import (
    TOPOLOGY,
    Changes,
    FaultsOption,
    JoinTimeoutOption,
    JsonOption,
    OutOption,
    SinksOption,
    TransportOption,
)
from dslth.config import EngineName, Restart, TransportName
from dslth.engines.batched import Batched
from dslth.engines.ray import Ray, placed
from dslth.engines.supervisor import Outcome, check_resumable, run_local
from dslth.errors import CheckpointError, MissingFileError
from dslth.report import page
from dslth.runs.folder import Launch, RunFolder
from dslth.runs.summary import check_played, summarise
from dslth.show.console import err, out
from dslth.show.live import LiveTable, follow
from dslth.sinks import About, opened
from dslth.transport import faulty

__all__ = ["run"]

ONLY_OF_PROCESSES = {"transport", "address", "restart", "orphans", "curve", "insecure", "faults"}
"""Launch options of peers that have a process and sockets each."""


def _can_draw(wanted: bool | None) -> bool | None:
    """Look for what draws the report before the run, not after it."""
    if wanted:
        page.check()
    return wanted


ReportOption = Annotated[
    bool | None,
    typer.Option(
        "--report/--no-report",
        callback=_can_draw,
        help="Whether to write a page with pictures of the run, report.html, into it [default: with up to "
        f"{page.MANY} peers, if it can be drawn].",
    ),
]


@dataclass(frozen=True)
class LaunchOptions:
    """How the peers are started: the options that a run folder keeps as a Launch."""

    transport: TransportOption = TransportName.ZEROMQ
    restart: Annotated[Restart, typer.Option(help="What to do with a peer whose process dies.")] = Restart.ON_FAILURE
    orphans: Annotated[
        bool, typer.Option("--orphans/--no-orphans", help="Whether peers continue when this command is killed.")
    ] = True
    curve: Annotated[
        bool, typer.Option("--curve", help="Encrypt even on this machine, with keys made for this run in its folder.")
    ] = False
    insecure: keys.InsecureOption = False
    engine: Annotated[
        EngineName,
        typer.Option(
            help="What runs the peers: a process each on this machine, or in a Ray cluster; batched: a few processes "
            "for thousands of them, on a virtual network and clock."
        ),
    ] = EngineName.LOCAL
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster [env: RAY_ADDRESS, else one on this machine].")
    ] = None
    faults: FaultsOption = None
    join_timeout: JoinTimeoutOption = 60.0


def run(
    context: typer.Context,
    topology_file: Annotated[str | None, TOPOLOGY] = None,
    changes: Changes = Changes(),
    launch_options: LaunchOptions = LaunchOptions(),
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Resume a run that was stopped, as it was started, from its run folder's checkpoints."
        ),
    ] = None,
    out_dir: OutOption = None,
    sinks: SinksOption = None,
    report: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run all peers of a topology on this machine, and show what they learned and sent.

    Ctrl-C ends all peers; what was measured stays in the run folder, and --resume continues from there.
    """
    if (topology_file is None) == (resume is None):
        raise typer.BadParameter("give either --topology FILE or --resume RUN")
    if resume is not None and not (resume / "topology.yaml").is_file():
        raise MissingFileError(f"--resume {resume}: not a run folder, it has no topology.yaml")
    typed = Launch(**asdict(launch_options))
    launch = typed if resume is None else _as_before(context, typed, RunFolder(resume).launch())
    faults = faulty.parse(launch.faults) if launch.faults is not None else None
    on_ray, in_memory = launch.engine == EngineName.RAY, launch.transport == TransportName.MEMORY
    batched = launch.engine == EngineName.BATCHED
    if batched and (named := sorted(_typed(context) & ONLY_OF_PROCESSES)):
        raise typer.BadParameter(f"--engine batched has no --{named[0].replace('_', '-')}")
    if (launch.curve and launch.insecure) or ((launch.curve or on_ray) and in_memory):
        raise typer.BadParameter("--curve and --engine ray need sockets, and --curve excludes --insecure")
    file = str(resume / "topology.yaml") if resume is not None else str(topology_file)
    settings, graph = options.read(file, changes)
    folder = None if resume is None else RunFolder(resume)
    if folder:
        check_resumable(settings, graph, folder)
    if folder and folder.have_finished(range(graph.peers), settings.experiment.rounds):
        _tell(Outcome(folder, summarise(folder), interrupted=False), as_json=as_json)
        return
    if batched and (folder or settings.experiment.keep_checkpoints):
        raise CheckpointError("--engine batched keeps no checkpoints: start anew, without experiment.keep_checkpoints")
    if on_ray:  # which finds addresses itself; keys are made for the run
        settings = placed(settings, insecure=launch.insecure)
        launch = launch.model_copy(update={"curve": not launch.insecure})
    elif not (in_memory or batched or launch.curve):
        settings = keys.checked(settings, graph, insecure=launch.insecure)
    options.look_at_data(settings, graph, virtual=batched, here=not on_ray)
    folder = folder or options.new_folder(out_dir, file)
    title = showing.title(file if resume is None else resume.name, settings)
    table = LiveTable(graph.peers, settings.experiment.rounds, title)
    with options.orderly():  # the fork server's files are removed at the very end
        about = About(folder.path, graph.peers, settings)
        with follow(table, quiet=as_json) as show, opened(sinks or (), about, show) as watch:
            outcome = run_local(
                settings,
                graph,
                folder,
                transport=launch.transport,
                join_timeout=launch.join_timeout,
                watch=watch,
                restart=launch.restart == Restart.ON_FAILURE and not batched,
                orphans=launch.orphans,
                faults=faults,
                engine=partial(Ray, cluster=launch.address) if on_ray else Batched if batched else None,
                launch=launch,
            )
        report = page.can_draw() and graph.peers <= page.MANY if report is None else report
        _tell(outcome, as_json=as_json, report=report)


def _as_before(context: typer.Context, typed: Launch, before: Launch) -> Launch:
    """Return how a resumed run was launched, with the options that are typed this time replaced."""
    return before.model_copy(update={name: getattr(typed, name) for name in _typed(context)})


def _typed(context: typer.Context) -> set[str]:
    """Return the names of those launch options that are typed this time."""
    sources = {name: context.get_parameter_source(name) for name in Launch.model_fields}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _tell(outcome: Outcome, *, as_json: bool, report: bool = False) -> None:
    """Show the outcome of a run, with a ``report`` also as a page, and end with its exit code."""
    folder = outcome.folder
    if report and outcome.summary:
        page.add_to(folder.path)
    if as_json and outcome.summary:
        print(outcome.summary.to_json())  # noqa: T201
    elif outcome.summary:
        showing.show(folder, outcome.summary)
        if (drawn := folder.path / "report.html").is_file():
            out.print(f"pictures: {drawn}", soft_wrap=True)
    if outcome.interrupted:
        resumable = outcome.summary and folder.launch().engine != EngineName.BATCHED
        resume = f"; to resume: dslth run --resume {folder.path}" if resumable else ""
        err.print(f"interrupted; what was measured is in {folder.path}{resume}", soft_wrap=True)
        raise typer.Exit(130)
    if outcome.failure is not None:
        raise outcome.failure
    check_played(outcome.summary.peers if outcome.summary else ())
