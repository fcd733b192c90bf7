"""What several commands have in common: their options, and how those, the topology file and the data are read."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from dslth import config, topology
from dslth.config import CodecName, Preset, RunConfig
from dslth.engines.base import preflight
from dslth.errors import MissingFileError, OutputError
from dslth.run.folder import RunFolder
from dslth.show.console import err
from dslth.topology import Topology

__all__ = [
    "STYLE",
    "CodecOption",
    "DataDirOption",
    "DebugOption",
    "GraphOption",
    "JoinTimeoutOption",
    "JsonOption",
    "NoExchangeOption",
    "OutOption",
    "PartitionOption",
    "PresetOption",
    "RoundsOption",
    "SeedOption",
    "TopologyOption",
    "look_at_data",
    "new_folder",
    "orderly",
    "read",
]

STYLE: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,  # brackets in help texts are brackets
    "context_settings": {"help_option_names": ["-h", "--help"]},
    "add_completion": False,
}
"""How every Typer application is made."""


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
PresetOption = Annotated[Preset | None, typer.Option(help="Settings that the file's are laid on.")]
CodecOption = Annotated[CodecName | None, typer.Option(help="How masks are coded.")]
NoExchangeOption = Annotated[bool, typer.Option("--no-exchange", help="Every peer learns alone, for comparison.")]
DataDirOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of data sets [env: DSLTH_DATA_DIR, else the user's cache].")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder to write [default: a new one under runs/].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the figures, and nothing else, as JSON on stdout.")]
JoinTimeoutOption = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="How long a peer waits for its neighbours at the start.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def read(
    topology_file: str,
    *,
    rounds: int | None = None,
    seed: int | None = None,
    graph: Path | None = None,
    partition: Path | None = None,
    preset: str | None = None,
    codec: str | None = None,
    no_exchange: bool = False,
    data_dir: Path | None = None,
) -> tuple[RunConfig, Topology]:
    """Read the topology file with the command line's wishes laid on it, and make its graph; raises DslthError."""
    experiment: dict[str, Any] = {"rounds": rounds, "seed": seed, "preset": preset, "codec": codec}
    experiment = {key: value for key, value in experiment.items() if value is not None}
    if partition is not None:
        experiment.setdefault("data", {})["partition"] = {"kind": "counts", "table": config.read_counts(partition)}
    if data_dir is not None:
        if not os.path.isdir(data_dir):  # False, where Path.is_dir raises, for names that no folder can have
            raise MissingFileError(f"--data-dir {data_dir}: no such folder")
        experiment.setdefault("data", {})["folder"] = str(data_dir.resolve())
    if no_exchange:
        experiment["algorithm"] = {"exchange": False}
    overrides: dict[str, Any] = {"experiment": experiment} if experiment else {}
    if graph is not None:
        overrides["graph"] = {"kind": "file", "file": os.path.abspath(graph)}
    settings = config.load(topology_file, overrides)
    return settings, topology.build(settings.graph, settings.experiment.seed)


def look_at_data(settings: RunConfig, graph: Topology, peer: int | None = None) -> None:
    """Check before anything starts what would fail in every peer, data among it; they are downloaded where missing.

    ``peer`` is the one that is to run here, None for all.
    """
    with _bars() as progress:
        note = preflight(settings, graph, progress, peer)
    if note:
        err.print(f"note: {note}")


def new_folder(wanted: Path | None, name: str) -> RunFolder:
    """Return the folder to write: ``--out``, or a new one under ``runs/`` after a topology file's name."""
    if wanted is None:
        return RunFolder.fresh(name)
    if os.path.lexists(wanted) and not wanted.is_dir():
        raise OutputError(f"--out {wanted} is no folder; choose another name, or remove it")
    try:
        wanted.mkdir(parents=True, exist_ok=True)  # now, not when the work is done
        if any(wanted.iterdir()):
            raise OutputError(f"--out {wanted} is there already and not empty; choose another folder, or remove it")
    except OSError as error:
        raise OutputError(f"cannot make --out {wanted}: {error.strerror}; choose another folder") from None
    return RunFolder(wanted)


@contextmanager
def orderly() -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt, for what must be put in order before the command ends; not for imports."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each file that is downloaded, if any."""
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
