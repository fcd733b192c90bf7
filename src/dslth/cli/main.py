"""The commands: ``dslth`` for whole runs and what is left of them, ``dslth-peer`` for one peer in its own process."""

import errno
import json
import os
import platform
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live

from dslth import __version__, config, keys, limits, topology
from dslth.cli import deploy as deploy_cli
from dslth.cli import keys as keys_cli
from dslth.cli import options
from dslth.cli.bench import bench_app
from dslth.cli.keys import CurveOption, InsecureOption, KeysOption
from dslth.cli.options import (
    CodecOption,
    DataDirOption,
    DebugOption,
    GraphOption,
    JoinTimeoutOption,
    JsonOption,
    NoExchangeOption,
    OutOption,
    PartitionOption,
    PresetOption,
    RoundsOption,
    SeedOption,
    TopologyOption,
)
from dslth.config import EngineName, Restart, TransportName
from dslth.deploy import place, reports
from dslth.deploy.collector import Collector
from dslth.engines.base import PeerJob, Surroundings, end_on_signals, run_peer
from dslth.engines.inbox import Inbox
from dslth.engines.ray import Ray, placed
from dslth.engines.supervisor import Outcome, check_resumable, run_local
from dslth.errors import ConfigError, DslthError, MissingFileError, OutputError
from dslth.run.checkpoint import Checkpoints
from dslth.run.events import Event, Joined, RoundReport
from dslth.run.folder import Launch, RunFolder
from dslth.run.sinks import Call
from dslth.run.summary import PeerSummary, Summary, check_played, summarise
from dslth.show import tables, timeline
from dslth.show.console import err, out
from dslth.show.graph import draw, draw_png, topology_table
from dslth.show.live import LiveTable
from dslth.show.words import amount, decimal, percent, unlike
from dslth.terminal import bear_all, say
from dslth.transport import faulty

__all__ = ["main", "peer_main"]

app = typer.Typer(
    name="dslth",
    help="Decentralised learning in which peers exchange nothing but binary masks.",
    no_args_is_help=True,
    **options.STYLE,
)
topology_app = typer.Typer(help="Look at topology and graph files.", no_args_is_help=True, **options.STYLE)
app.add_typer(topology_app, name="topology")
app.add_typer(bench_app, name="bench")
app.add_typer(keys_cli.keys_app, name="keys")
deploy_cli.register(app)
peer_app = typer.Typer(name="dslth-peer", **options.STYLE)


FaultsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FAULTS",
        help="Let what peers send suffer, as in drop=0.1,delay=50ms,duplicate=0.05,reorder=0.1,corrupt=0.01.",
    ),
]


def main() -> None:
    """Run ``dslth``."""
    _guarded(app)


def peer_main() -> None:
    """Run ``dslth-peer``."""
    _guarded(peer_app)


def _guarded(command: Callable[..., Any]) -> None:
    """Turn an error of ours, or of who typed, into its one line and its exit code."""
    bear_all()
    try:
        code = command(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except _UsageError as error:
        for line in _usage(error).splitlines():
            say(line)
        sys.exit(2)
    except DslthError as error:
        _explain(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # which typer takes for Ctrl-D
            raise error.__cause__ from None
        sys.exit(130)
    except MemoryError:
        say("dslth: there is not enough memory; see ulimit -v, and what else runs here")
        sys.exit(DslthError.exit_code)
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EIO):
            raise
        say(f"dslth: cannot print the result: {error.strerror}")
        sys.stderr.flush()
        os._exit(OutputError.exit_code)  # what is left to print has nowhere to go


def _explain(error: DslthError) -> None:
    if "--debug" in sys.argv:
        for line in traceback.format_exc().splitlines():
            say(line)
    say(f"dslth: {error}")


_UsageError: Any = (
    typer.BadParameter.__base__
)  # typer brings its own copy of click or click itself, as it is old or new


def _usage(error: Any) -> str:
    """Put a misspelt command line in one line with what to type; a command that wants another word gets its help."""
    text = error.format_message()
    if text.startswith("Usage:"):
        return str(text)
    words = " ".join(text.split()).replace("Value error, ", "").rstrip(".")
    command = error.ctx.command_path if error.ctx else Path(sys.argv[0]).name
    return f"dslth: {words[0].lower()}{words[1:]}; see {command} --help"


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"dslth {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# --- dslth run ------------------------------------------------------------------------------------------------------


@app.command()
def run(
    context: typer.Context,
    topology_file: Annotated[
        str | None,
        typer.Option(
            "--topology", "-t", metavar="FILE", help="Topology file: a path, or a name that comes with dslth."
        ),
    ] = None,
    rounds: RoundsOption = None,
    seed: SeedOption = None,
    graph: GraphOption = None,
    partition: PartitionOption = None,
    preset: PresetOption = None,
    codec: CodecOption = None,
    transport: Annotated[
        TransportName, typer.Option(help="Processes over ZeroMQ, or threads of one process over memory.")
    ] = TransportName.ZEROMQ,
    no_exchange: NoExchangeOption = False,
    data_dir: DataDirOption = None,
    out_dir: OutOption = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Go on with a run that was stopped, as it was started, from its folder's checkpoints."
        ),
    ] = None,
    restart: Annotated[Restart, typer.Option(help="What to do with a peer whose process dies.")] = Restart.ON_FAILURE,
    orphans: Annotated[
        bool, typer.Option("--orphans/--no-orphans", help="Whether peers learn on when this command is killed.")
    ] = True,
    curve: CurveOption = False,
    insecure: InsecureOption = False,
    engine: Annotated[EngineName, typer.Option(help="Who runs the peers: this machine, or a Ray cluster.")] = (
        EngineName.LOCAL
    ),
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster [env: RAY_ADDRESS, else one on this machine].")
    ] = None,
    faults: FaultsOption = None,
    join_timeout: JoinTimeoutOption = 60.0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run all peers of a topology on this machine, and show what they learned and sent.

    Ctrl-C ends all peers; what was measured stays in the run folder, and --resume goes on from there.
    """
    if (topology_file is None) == (resume is None):
        raise typer.BadParameter("give either --topology FILE or --resume RUN")
    if resume is not None and not (resume / "topology.yaml").is_file():
        raise MissingFileError(f"--resume {resume}: no run folder, it has no topology.yaml")
    typed = Launch(
        transport=transport,
        engine=engine,
        address=address,
        restart=restart,
        orphans=orphans,
        curve=curve,
        insecure=insecure,
        faults=faults,
        join_timeout=join_timeout,
    )
    launch = typed if resume is None else _as_before(context, typed, RunFolder(resume).launch())
    befall = faulty.parse(launch.faults) if launch.faults is not None else None
    on_ray, in_memory = launch.engine == EngineName.RAY, launch.transport == TransportName.MEMORY
    if (launch.curve and launch.insecure) or ((launch.curve or on_ray) and in_memory):
        raise typer.BadParameter("--curve and --engine ray are for sockets, and --curve not together with --insecure")
    file = str(resume / "topology.yaml") if resume is not None else str(topology_file)
    settings, graph_of_peers = options.read(
        file,
        rounds=rounds,
        seed=seed,
        graph=graph,
        partition=partition,
        preset=preset,
        codec=codec,
        no_exchange=no_exchange,
        data_dir=data_dir,
    )
    folder = None if resume is None else RunFolder(resume)
    if folder:
        check_resumable(settings, graph_of_peers, folder)
    if folder and folder.have_finished(range(graph_of_peers.peers), settings.experiment.rounds):
        _tell(Outcome(folder, summarise(folder), interrupted=False), as_json=as_json)
        return
    if on_ray:  # which finds addresses itself; keys are made for the run
        settings = placed(settings, insecure=launch.insecure)
        launch = launch.model_copy(update={"curve": not launch.insecure})
    elif not (in_memory or launch.curve):
        settings = keys_cli.checked(settings, graph_of_peers, insecure=launch.insecure)
    options.look_at_data(settings, graph_of_peers)
    folder = folder or options.new_folder(out_dir, file)
    title = _title(file if resume is None else resume.name, settings)
    table = LiveTable(graph_of_peers.peers, settings.experiment.rounds, title)
    with options.orderly():  # the fork server's files are removed at the very end
        with _live(table, quiet=as_json) as watch:
            outcome = run_local(
                settings,
                graph_of_peers,
                folder,
                transport=launch.transport,
                join_timeout=launch.join_timeout,
                watch=watch,
                restart=launch.restart == Restart.ON_FAILURE,
                orphans=launch.orphans,
                faults=befall,
                engine=partial(Ray, cluster=launch.address) if on_ray else None,
                launch=launch,
            )
        _tell(outcome, as_json=as_json)


def _as_before(context: typer.Context, typed: Launch, before: Launch) -> Launch:
    """Return how a run that is gone on with was launched, with what was typed this time in place of what was then."""
    sources = {name: context.get_parameter_source(name) for name in Launch.model_fields}
    chosen = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    return before.model_copy(update={name: getattr(typed, name) for name in chosen})


def _tell(outcome: Outcome, *, as_json: bool) -> None:
    """Show what became of a run, and end as it did."""
    folder = outcome.folder
    if as_json and outcome.summary:
        print(outcome.summary.to_json())  # noqa: T201
    elif outcome.summary:
        _show(folder, outcome.summary)
    if outcome.interrupted:
        go_on = f"; dslth run --resume {folder.path} goes on" if outcome.summary else ""
        err.print(f"interrupted; what was measured is in {folder.path}{go_on}", soft_wrap=True)
        raise typer.Exit(130)
    if outcome.failure is not None:
        raise outcome.failure
    check_played(outcome.summary.peers if outcome.summary else ())


def _title(topology_file: str, settings: config.RunConfig) -> str:
    experiment = settings.experiment
    what = f"{experiment.model.name} on {experiment.data.name}, preset {experiment.preset}, seed {experiment.seed}"
    return f"{Path(topology_file).stem}: {what}"


@contextmanager
def _live(table: LiveTable, quiet: bool) -> Iterator[Callable[[Event], None]]:
    """Follow a run on the terminal: a live table on a screen, a line every few seconds elsewhere."""
    if quiet:
        yield table.take
    elif out.is_terminal:
        with options.orderly(), Live(table, console=out, refresh_per_second=8, transient=True):
            yield table.take
    else:
        last = ""

        def take(event: Event) -> None:
            nonlocal last
            table.take(event)
            line = table.line()
            if line.partition(",")[0] != last.partition(",")[0]:
                err.print(line)
                last = line

        yield take


def _show(folder: RunFolder, summary: Summary) -> None:
    if ignored := summary.lines_ignored:
        place = folder.path / "peers"
        err.print(f"note: {ignored} lines under {place} are no reports of their peer; left out", soft_wrap=True)
    out.print(tables.peer_table(folder, summary))
    out.print(tables.totals(summary))
    if said := unlike(summary):
        out.print(f"note: {said}", soft_wrap=True)
    if (happened := timeline.show(summary, folder.launched())) is not None:
        out.print(happened)


@app.command()
def collect(
    topology_file: Annotated[str, typer.Argument(metavar="TOPOLOGY", help="A path, or a name that comes with dslth.")],
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where peers' --reports go, as in tcp://*:47200.")
    ] = "tcp://127.0.0.1:47200",
    rounds: RoundsOption = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder to write [default: runs/NAME].")
    ] = None,
    patience: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for the next report before giving up.")
    ] = 600.0,
    keys_dir: KeysOption = None,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Collect the reports of peers that run elsewhere, show them, and end when all peers have finished.

    Started again on the folder of a run that has not finished, it goes on with it.
    """
    settings, graph_of_peers = options.read(topology_file, rounds=rounds)
    limits.provide(graph_of_peers)
    folder = RunFolder(out_dir or Path("runs") / Path(topology_file).stem)
    table = LiveTable(graph_of_peers.peers, settings.experiment.rounds, _title(topology_file, settings))
    stop = threading.Event()
    how = keys_cli.secured(settings, topology_file, [listen], insecure=insecure, folder=keys_dir)
    with end_on_signals(stop), folder.owned():
        mine = reports.collector_keys(how.network, graph_of_peers.peers, patience, stop, make=keys_dir is not None)
        inbox = Inbox(listen, graph_of_peers.peers, mine)
        try:
            collector = Collector(settings, graph_of_peers, folder)  # which may begin the folder anew
            try:
                with _live(table, quiet=as_json) as watch:
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
            _show(folder, summary)
        folder.write_summary(summary)
        return summary.peers
    return ()


# --- dslth inspect, dslth topology ----------------------------------------------------------------------------------


@app.command()
def inspect(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    edges: Annotated[bool, typer.Option("--edges", help="Show the bytes of every directed edge as well.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show a run again, from its folder's files alone; a run that is still going on, too."""
    folder = RunFolder(run_dir)
    summary = summarise(folder)
    if as_json:
        print(summary.to_json())  # noqa: T201
        return
    _show(folder, summary)
    out.print(tables.phase_table(folder))
    if edges:
        out.print(tables.edge_table(folder))


@topology_app.command()
def show(
    file: Annotated[
        str, typer.Argument(help="A topology file, the name of one that comes with dslth, or a graph file.")
    ],
    seed: SeedOption = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the graph into a PNG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print nodes, edges and degrees as JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """Print nodes, edges, degrees and diameter of a graph, and draw it."""
    graph = _graph(file, seed)
    if as_json:
        figures = {"peers": graph.peers, "edges": graph.edges, "digest": graph.digest}
        print(json.dumps(figures | {"neighbours": [graph.neighbours(peer) for peer in range(graph.peers)]}))  # noqa: T201
        return
    out.print(topology_table(graph))
    print(draw(graph))  # noqa: T201
    if png is not None:
        draw_png(graph, png)
        out.print(f"drawn into {png}")


def _graph(file: str, seed: int | None) -> topology.Topology:
    if Path(file).is_file() and Path(file).suffix not in (".yaml", ".yml"):
        return topology.read_graph(Path(file))
    settings = config.load(file, {} if seed is None else {"experiment": {"seed": seed}})
    graph = topology.build(settings.graph, settings.experiment.seed)
    settings.check_peers(graph.peers)
    return graph


# --- dslth-peer -----------------------------------------------------------------------------------------------------


@peer_app.command()
def _peer(
    topology_file: TopologyOption,
    peer: Annotated[
        int | None,
        typer.Option(
            "--id",
            help="Which peer of the topology to be [default: srun's task, or the number that the host is named with].",
        ),
    ] = None,
    rounds: RoundsOption = None,
    seed: SeedOption = None,
    graph: GraphOption = None,
    partition: PartitionOption = None,
    preset: PresetOption = None,
    codec: CodecOption = None,
    no_exchange: NoExchangeOption = False,
    data_dir: DataDirOption = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder; peers may share one [default: runs/NAME].")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Listen here, as in tcp://0.0.0.0:47100 [default: the topology's address]."
        ),
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Tell neighbours that this peer is here, not where the topology says."),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST[:PORT]", help="Where peers are, in place of the file's: peer-{id}:47100."),
    ] = None,
    reports_to: Annotated[
        str | None, typer.Option("--reports", metavar="ADDRESS", help="Send reports to a dslth collect there as well.")
    ] = None,
    keys_dir: KeysOption = None,
    insecure: InsecureOption = False,
    faults: FaultsOption = None,
    join_timeout: JoinTimeoutOption = 60.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line for each round.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Be one peer of a topology, in this process; the others may start before or after it, here or elsewhere.

    Without a 'network' section in the file, peer i listens on 127.0.0.1, port 47100 + i; in a Slurm job step, on its
    node. Killed and started again with the same --out it goes on from its checkpoint; once finished, it begins anew.
    """
    settings, graph_of_peers = options.read(
        topology_file,
        rounds=rounds,
        seed=seed,
        graph=graph,
        partition=partition,
        preset=preset,
        codec=codec,
        no_exchange=no_exchange,
        data_dir=data_dir,
    )
    peer, network = place.find(peer, host, settings.network, graph_of_peers.peers, os.environ, platform.node())
    settings = settings.model_copy(update={"network": network})
    addresses = [network.address(other) for other in range(graph_of_peers.peers)]
    listen = listen or _bindable(addresses[peer])
    befall = faulty.parse(faults) if faults is not None else None
    neighbours = graph_of_peers.neighbours(peer)
    advertise = _full("--advertise", advertise) if advertise else None
    others = [address for address in (advertise, reports_to) if address]
    nearby = [listen, *(addresses[neighbour] for neighbour in neighbours), *others]
    how = keys_cli.secured(settings, topology_file, nearby, insecure=insecure, folder=keys_dir)
    options.look_at_data(settings, graph_of_peers, peer)
    folder = RunFolder(out_dir or Path("runs") / Path(topology_file).stem)
    folder.check_free()

    def begin(address: str) -> list[str]:
        """Begin in the folder, now that this peer's files are its own and its port is bound."""
        folder.check_free()
        checkpoints = Checkpoints(folder.checkpoints(peer))
        if folder.have_finished([peer], settings.experiment.rounds):
            checkpoints.clear()
        anew = not checkpoints.files()
        if not anew and (folder.path / "topology.yaml").is_file():
            check_resumable(settings, graph_of_peers, folder)
        folder.begin(settings, graph_of_peers, anew=anew)
        if anew:
            folder.reports(peer).unlink(missing_ok=True)  # those of a run before
        return addresses

    stop = threading.Event()
    with end_on_signals(stop):
        if keys_dir is not None:
            keys.ensure(keys_dir, peer)
            keys.wait_for(keys_dir, [*neighbours, *([graph_of_peers.peers] if reports_to else [])], join_timeout, stop)
        with reports.sending(reports_to, peer, graph_of_peers.peers, how.network) as send:

            def watch(event: Event) -> None:
                send(event)
                if not (as_json or quiet):
                    _say(event, settings.experiment.rounds)

            job = PeerJob(
                peer,
                how,
                graph_of_peers,
                folder,
                listen=listen,
                advertise=advertise or "",
                join_timeout=join_timeout,
                faults=befall,
                forget=not settings.experiment.keep_checkpoints,
            )
            run_peer(job, Surroundings(stop, begin, (Call(watch),)))
    summary = next(figures for figures in summarise(folder).peers if figures.id == peer)
    if as_json:
        print(summary.to_json())  # noqa: T201
    else:
        err.print(
            f"peer {peer}: {summary.rounds_completed} rounds, mask {(summary.mask_digest or '–')[:16]}, "
            f"messages {amount(summary.message_bytes_sent)}; see dslth inspect {folder.path}"
        )
    if stop.is_set():
        raise typer.Exit(130)
    check_played([summary])


def _say(event: Event, rounds: int) -> None:
    """Tell in a line what a peer did."""
    if isinstance(event, Joined):
        err.print(f"peer {event.peer} joined {len(event.neighbours)} neighbours")
    elif isinstance(event, RoundReport):
        personal = "" if event.accuracy_personal is None else f", personal accuracy {percent(event.accuracy_personal)}"
        sent = amount(sum(link.message_sent for link in event.links.values()))
        missing = f", missing {list(event.missing)}" if event.missing else ""
        err.print(f"round {event.round + 1}/{rounds}: loss {decimal(event.loss)}{personal}, sent {sent}{missing}")


def _full(option: str, address: str) -> str:
    try:
        return config.full_address(address)
    except ValueError as error:
        raise ConfigError(f"{option} {address[:80]!r}: {error}") from None


def _bindable(address: str) -> str:
    """Return the address to listen on for one that others connect to: a host name becomes every interface."""
    scheme, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    is_number = host.replace(".", "").isdigit() or ":" in host
    if host == "localhost":
        return f"{scheme}://127.0.0.1:{port}"
    return address if is_number or host == "*" else f"{scheme}://*:{port}"
