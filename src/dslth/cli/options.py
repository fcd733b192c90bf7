"""What several commands share: their options, and how these, the topology file and the data are read."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from dslth import __version__, config, sinks, topology
from dslth.config import CodecName, Preset, RunConfig, TransportName
from dslth.engines.base import preflight
from dslth.errors import ConfigError, MissingFileError
from dslth.runs.folder import RunFolder
from dslth.show.console import err, out
from dslth.topology import Topology

__all__ = [
    "TOPOLOGY",
    "Changes",
    "FaultsOption",
    "JoinTimeoutOption",
    "JsonOption",
    "OutOption",
    "SinksOption",
    "TopologyArgument",
    "TopologyOption",
    "TransportOption",
    "VersionOption",
    "complete_topology",
    "look_at_data",
    "nested",
    "new_folder",
    "orderly",
    "read",
]


def complete_topology(incomplete: str) -> list[str]:
    """Return what a shell may complete a topology to: files, folders on the way to them, and names of shipped ones."""
    folder, start = os.path.split(incomplete)
    here = [Path(folder) / name for name in (os.listdir(folder or ".") if os.path.isdir(folder or ".") else ())]
    paths = [f"{path}/" if path.is_dir() else str(path) for path in here if path.name.startswith(start)]
    shipped = [file.stem for file in config.shipped("topologies").glob("*.yaml")]
    files = [path for path in paths if path.endswith((".yaml", ".yml", "/"))]
    return sorted([name for name in shipped if name.startswith(incomplete)] + files)


TOPOLOGY = typer.Option(
    "--topology",
    "-t",
    metavar="FILE",
    help="Topology file: a path, or a name that comes with dslth.",
    autocompletion=complete_topology,
)
TopologyOption = Annotated[str, TOPOLOGY]
TopologyArgument = Annotated[
    str,
    typer.Argument(
        metavar="TOPOLOGY", help="A path, or a name that comes with dslth.", autocompletion=complete_topology
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder to write [default: a new one under runs/].")
]
TransportOption = Annotated[
    TransportName, typer.Option(help="Processes over ZeroMQ, or threads of one process over memory.")
]


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"dslth {__version__}")
        raise typer.Exit


VersionOption = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the figures, and nothing else, as JSON on stdout.")]
FaultsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FAULTS",
        help="Faults of what peers send, as in drop=0.1,delay=50ms,duplicate=0.05,reorder=0.1,corrupt=0.01.",
    ),
]


def _sinks(names: list[str]) -> list[str]:
    for name in names:
        sinks.parse(name)
    return names


SinksOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sink",
        metavar="NAME[=WHERE]",
        callback=lambda names: _sinks(names or []),
        help="Another program that follows the run: tensorboard, mlflow, prometheus, parquet; may be repeated.",
    ),
]
JoinTimeoutOption = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="How long a peer waits for its neighbours at the start.")
]


@dataclass(frozen=True)
class Changes:
    """Options that replace settings of a topology file; a command has those of them that it can use."""

    rounds: Annotated[int | None, typer.Option(min=1, help="Number of rounds, in place of the file's.")] = None
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of weights, data split and batches, in place of the file's.")
    ] = None
    graph: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Graph in place of the file's: 0/1 matrix, edge list or GraphML."),
    ] = None
    partition: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Counts table in place of the file's partition: rows peers, columns classes."
        ),
    ] = None
    preset: Annotated[Preset | None, typer.Option(help="Settings that the file's build on.")] = None
    codec: Annotated[CodecName | None, typer.Option(help="How masks are coded.")] = None
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="What peers compute on, as in cuda:0, in place of the file's.")
    ] = None
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as in algorithm.lr=0.3; may be repeated."),
    ] = None
    no_exchange: Annotated[bool, typer.Option("--no-exchange", help="Every peer learns alone, for comparison.")] = False
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of data sets [env: DSLTH_DATA_DIR, else the user's cache]."),
    ] = None

    def overrides(self) -> dict[str, Any]:
        """Return these options as keys of a topology file, to win over the file's; raises DslthError."""
        given = {"rounds": self.rounds, "seed": self.seed, "preset": self.preset, "codec": self.codec}
        experiment: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        data: dict[str, Any] = {}
        if self.partition is not None:
            data["partition"] = {"kind": "counts", "table": config.read_counts(self.partition)}
        if self.data_dir is not None:
            if not os.path.isdir(self.data_dir):  # False for names that no folder can have; Path.is_dir raises
                raise MissingFileError(f"--data-dir {self.data_dir}: no such folder")
            data["folder"] = str(self.data_dir.resolve())
        if data:
            experiment["data"] = data
        if self.no_exchange:
            experiment["algorithm"] = {"exchange": False}
        overrides: dict[str, Any] = {"experiment": experiment} if experiment else {}
        if self.graph is not None:
            overrides["graph"] = {"kind": "file", "file": os.path.abspath(self.graph)}
        for text in self.set or ():
            keys, values = config.assigned(text)
            if len(values) > 1:
                raise ConfigError(
                    f"--set {text[:80]!r}: one value; to try several: dslth sweep (or write a list in [])"
                )
            overrides = config.merge(overrides, nested(keys, values[0]))
        return overrides


def nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    """Return the keys of a topology file that set one value."""
    for key in reversed(keys):
        value = {key: value}
    made: dict[str, Any] = value
    return made


def read(topology_file: str, changes: Changes | None = None) -> tuple[RunConfig, Topology]:
    """Read a topology file, apply the changes, and make its graph; raises DslthError."""
    settings = config.load(topology_file, changes.overrides() if changes else {})
    graph = topology.build(settings.graph, settings.experiment.seed)
    if changes and changes.device is not None:
        try:
            settings = settings.on(config.computing_device(changes.device), graph.peers)
        except ValueError as error:
            raise ConfigError(f"--device {changes.device[:80]!r}: {error}") from None
    return settings, graph


def look_at_data(
    settings: RunConfig, graph: Topology, peer: int | None = None, *, virtual: bool = False, here: bool = True
) -> None:
    """Check, before anything starts, what would fail in every peer; downloads missing data.

    For ``peer`` (None for all), ``virtual`` and ``here`` see ``preflight``.
    """
    with _bars() as progress:
        note = preflight(settings, graph, progress, peer, virtual=virtual, here=here)
    if note:
        err.print(f"note: {note}")


def new_folder(wanted: Path | None, name: str) -> RunFolder:
    """Return the run folder to write: ``--out``, or a new one under ``runs/`` named after the topology file."""
    return RunFolder.new(wanted, name, "--out")


@contextmanager
def orderly() -> Iterator[None]:
    """Turn Ctrl-C into a KeyboardInterrupt, for code that must clean up before the command ends; not for imports."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar for each file that is downloaded."""
    with ExitStack() as shown:
        bars = Progress(console=err, transient=True)
        tasks: dict[str, TaskID] = {}

        def progress(name: str, done: int, total: int) -> None:
            if not tasks:
                shown.enter_context(orderly())
                shown.enter_context(bars)
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total or None)
            bars.update(tasks[name], completed=done)

        yield progress
