"""The commands: ``dslth`` for whole runs and what is left of them, ``dslth-peer`` for one peer in its own process."""

import json
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import Progress, TaskID

from dslth import __version__, config, launcher, report, topology
from dslth.bench.cli import bench_app
from dslth.errors import DslthError, MissingFileError, OutputError
from dslth.events import Event, Joined, RoundReport
from dslth.runfolder import RunFolder

__all__ = ["main", "peer_main"]

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="dslth",
    help="Decentralised learning in which peers exchange nothing but binary masks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in help texts are brackets
    context_settings=HELP,
    add_completion=False,
)
topology_app = typer.Typer(
    help="Look at topology and graph files.", no_args_is_help=True, context_settings=HELP, rich_markup_mode=None
)
app.add_typer(topology_app, name="topology")
app.add_typer(bench_app, name="bench")
peer_app = typer.Typer(
    name="dslth-peer",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP,
    add_completion=False,
)

out = Console()
err = Console(stderr=True)


class TransportName(StrEnum):
    """How masks travel."""

    ZEROMQ = "zeromq"
    MEMORY = "memory"


class PresetName(StrEnum):
    """Named settings."""

    SIGNED = "signed"
    MCE_PL = "mce-pl"


class CodecName(StrEnum):
    """How masks are coded."""

    AUTO = "auto"
    BITPACK = "bitpack"
    RANGE = "range"
    DELTA = "delta"
    CONTEXT = "context"


TopologyOption = Annotated[
    str,
    typer.Option("--topology", "-t", metavar="FILE", help="Topology file: a path, or a name that comes with dslth."),
]
RoundsOption = Annotated[int | None, typer.Option(min=1, help="Number of rounds, in place of the file's.")]
SeedOption = Annotated[
    int | None, typer.Option(min=0, help="Seed of weights, data split and batches, in place of the file's.")
]
GraphOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Graph in place of the file's: 0/1 matrix, edge list or GraphML."),
]
PartitionOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Counts table in place of the file's partition: rows peers, columns classes."),
]
PresetOption = Annotated[PresetName | None, typer.Option(help="Settings that the file's are laid on.")]
CodecOption = Annotated[CodecName | None, typer.Option(help="How masks are coded.")]
NoExchangeOption = Annotated[bool, typer.Option("--no-exchange", help="Every peer learns alone, for comparison.")]
DataDirOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of data sets [env: DSLTH_DATA_DIR, else the user's cache].")
]
OutOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Run folder to write [default: a new one under runs/].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary, and nothing else, as JSON on stdout.")]
JoinTimeoutOption = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="How long a peer waits for its neighbours at the start.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Run ``dslth``."""
    _guarded(app)


def peer_main() -> None:
    """Run ``dslth-peer``."""
    _guarded(peer_app)


def _guarded(command: Callable[[], Any]) -> None:
    """Turn an error of ours into its one line and its exit code."""
    try:
        command()
    except DslthError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"dslth: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"dslth {__version__}", highlight=False)
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
    topology_file: TopologyOption,
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
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder to write [default: a new one under runs/].")
    ] = None,
    join_timeout: JoinTimeoutOption = 60.0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run all peers of a topology on this machine, and show what they learned and sent.

    Ctrl-C ends all peers; what was measured stays in the run folder.
    """
    settings = _load(topology_file, rounds, seed, graph, partition, preset, codec, no_exchange, data_dir)
    graph_of_peers = topology.build(settings.graph, settings.experiment.seed)
    folder = _folder(out_dir, topology_file)
    with _downloads() as progress:
        note = launcher.preflight(settings, graph_of_peers, progress)
    if note:
        err.print(f"note: {note}", highlight=False)
    table = report.LiveTable(graph_of_peers.peers, settings.experiment.rounds, _title(topology_file, settings))
    with _live(table, quiet=as_json) as watch:
        outcome = launcher.run_local(
            settings, graph_of_peers, folder, transport=transport, join_timeout=join_timeout, watch=watch
        )
    if as_json:
        print(json.dumps(outcome.summary))  # noqa: T201
    else:
        _show(folder, outcome.summary)
    if outcome.interrupted:
        err.print(f"interrupted; what was measured is in {folder.path}", highlight=False)
        raise typer.Exit(130)


def _load(
    topology_file: str,
    rounds: int | None,
    seed: int | None,
    graph: Path | None,
    partition: Path | None,
    preset: str | None,
    codec: str | None,
    no_exchange: bool,
    data_dir: Path | None,
) -> config.RunConfig:
    """Read the topology file with the command line's wishes laid on it."""
    experiment: dict[str, Any] = {"rounds": rounds, "seed": seed, "preset": preset, "codec": codec}
    experiment = {
        key: str(value) if isinstance(value, StrEnum) else value
        for key, value in experiment.items()
        if value is not None
    }
    if partition is not None:
        experiment.setdefault("data", {})["partition"] = {"kind": "counts", "table": config.read_counts(partition)}
    if data_dir is not None:
        if not data_dir.is_dir():
            raise MissingFileError(f"--data-dir {data_dir}: no such folder")
        experiment.setdefault("data", {})["folder"] = str(data_dir.resolve())
    if no_exchange:
        experiment["algorithm"] = {"exchange": False}
    overrides: dict[str, Any] = {"experiment": experiment}
    if graph is not None:
        overrides["graph"] = {"kind": "file", "file": str(graph.resolve())}
    return config.load(topology_file, overrides)


def _folder(wanted: Path | None, topology_file: str) -> RunFolder:
    if wanted is None:
        return RunFolder.fresh(topology_file)
    if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
        raise OutputError(f"--out {wanted} is there already and not empty; choose another folder, or remove it")
    return RunFolder(wanted)


def _title(topology_file: str, settings: config.RunConfig) -> str:
    experiment = settings.experiment
    what = f"{experiment.model.name} on {experiment.data.name}, preset {experiment.preset}, seed {experiment.seed}"
    return f"{Path(topology_file).stem}: {what}"


@contextmanager
def _downloads() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each file that is downloaded, if any."""
    with ExitStack() as shown:
        bars = Progress(console=err, transient=True)
        tasks: dict[str, TaskID] = {}

        def progress(name: str, done: int, total: int) -> None:
            if not tasks:
                shown.enter_context(bars)
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total or None)
            bars.update(tasks[name], completed=done)

        yield progress


@contextmanager
def _live(table: report.LiveTable, quiet: bool) -> Iterator[Callable[[Event], None]]:
    """Follow a run on the terminal: a live table on a screen, a line every few seconds elsewhere."""
    if quiet:
        yield table.take
    elif out.is_terminal:
        with Live(table, console=out, refresh_per_second=8, transient=True):
            yield table.take
    else:
        last = ""

        def take(event: Event) -> None:
            nonlocal last
            table.take(event)
            line = table.line()
            if line.partition(",")[0] != last.partition(",")[0]:
                err.print(line, highlight=False)
                last = line

        yield take


def _show(folder: RunFolder, summary: dict[str, Any]) -> None:
    out.print(report.peer_table(folder, summary))
    out.print(report.totals(summary))


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
    summary = report.summarise(folder)
    if as_json:
        print(json.dumps(summary))  # noqa: T201
        return
    _show(folder, summary)
    out.print(report.phase_table(folder))
    if edges:
        out.print(report.edge_table(folder))


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
    out.print(report.topology_table(graph))
    print(report.draw(graph))  # noqa: T201
    if png is not None:
        report.draw_png(graph, png)
        out.print(f"drawn into {png}", highlight=False)


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
    peer: Annotated[int, typer.Option("--id", help="Which peer of the topology to be.")],
    topology_file: TopologyOption,
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
    join_timeout: JoinTimeoutOption = 60.0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Be one peer of a topology, in this process; the others may start before or after it, here or elsewhere.

    Without a 'network' section in the file, peer i listens on 127.0.0.1, port 47100 + i.
    """
    settings = _load(topology_file, rounds, seed, graph, partition, preset, codec, no_exchange, data_dir)
    graph_of_peers = topology.build(settings.graph, settings.experiment.seed)
    config.check_peer(peer, graph_of_peers.peers, "--id")
    with _downloads() as progress:
        note = launcher.preflight(settings, graph_of_peers, progress)
    if note:
        err.print(f"note: {note}", highlight=False)
    network = settings.network or config.NetworkConfig()
    addresses = [network.address(other) for other in range(graph_of_peers.peers)]
    folder = RunFolder(out_dir or Path("runs") / Path(topology_file).stem)
    folder.begin(settings, graph_of_peers)

    def watch(event: Event) -> None:
        if as_json:
            return
        if isinstance(event, Joined):
            err.print(f"peer {event.peer} joined {len(event.neighbours)} neighbours", highlight=False)
        elif isinstance(event, RoundReport):
            personal = (
                "" if event.accuracy_personal is None else f", personal accuracy {100 * event.accuracy_personal:.1f} %"
            )
            sent = report.amount(sum(link.message_sent for link in event.links.values()))
            missing = f", missing {list(event.missing)}" if event.missing else ""
            err.print(
                f"round {event.round + 1}/{settings.experiment.rounds}: loss {event.loss:.3f}{personal}, "
                f"sent {sent}{missing}",
                highlight=False,
            )

    stop = threading.Event()
    with launcher.end_on_signals(stop):
        launcher.run_one(
            peer,
            settings,
            graph_of_peers,
            folder,
            stop,
            listen=listen or _bindable(addresses[peer]),
            meet=lambda address: addresses,
            watch=watch,
            join_timeout=join_timeout,
        )
    summary = next(figures for figures in report.summarise(folder)["peers"] if figures["id"] == peer)
    if as_json:
        print(json.dumps(summary))  # noqa: T201
    else:
        err.print(
            f"peer {peer}: {summary['rounds_completed']} rounds, mask {summary['mask_digest'][:16]}, "
            f"messages {report.amount(summary['message_bytes_sent'])}; see dslth inspect {folder.path}",
            highlight=False,
        )
    if stop.is_set():
        raise typer.Exit(130)


def _bindable(address: str) -> str:
    """Give the address to listen on for one that others connect to: a host name becomes every interface."""
    scheme, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    is_number = host.replace(".", "").isdigit() or ":" in host
    if host == "localhost":
        return f"{scheme}://127.0.0.1:{port}"
    return address if is_number or host == "*" else f"{scheme}://*:{port}"
