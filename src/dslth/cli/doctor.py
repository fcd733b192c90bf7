"""``dslth doctor``: what this machine has, and whether the run of a topology file can take place on it."""

import json
import os
import platform
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Annotated

import typer
from rich.table import Table

from dslth import __version__, config, limits
from dslth.cli import keys, options
from dslth.cli.options import Changes, JsonOption, complete_topology
from dslth.config import DataConfig, DataName, EngineName, NetworkConfig, RunConfig
from dslth.engines.base import predicted_memory, preflight
from dslth.errors import AddressError, DslthError
from dslth.learning import data
from dslth.show.console import out
from dslth.show.tables import new_table
from dslth.topology import Topology

__all__ = ["doctor"]

PATIENCE = 10.0
"""Seconds until an engine's own command is taken not to answer."""


@dataclass(frozen=True)
class Found:
    """What was looked at and what was found; with the exit code of the run, if that keeps it from taking place."""

    what: str
    found: str
    exit_code: int = 0


def doctor(
    topology_file: Annotated[
        str | None,
        typer.Argument(
            metavar="[TOPOLOGY]",
            help="A path, or a name that comes with dslth: can it run here?",
            autocompletion=complete_topology,
        ),
    ] = None,
    changes: Annotated[Changes, "preset", "graph", "partition", "data_dir"] = Changes(),
    engine: Annotated[EngineName, typer.Option(help="What would run the peers; see dslth run.")] = EngineName.LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Show what this machine has, and whether a topology can run on it; nothing is started or downloaded.

    If it cannot run, the exit code is the one that the run would end with.
    """
    parts = {"this machine": list(_machine(changes))}
    if topology_file is not None:
        parts[topology_file] = list(_file(topology_file, changes, engine))
    code = next((found.exit_code for part in parts.values() for found in part if found.exit_code), 0)
    if as_json:
        told = [{"of": of} | asdict(found) for of, part in parts.items() for found in part]
        print(json.dumps({"exit_code": code, "found": told}))  # noqa: T201
    else:
        for title, part in parts.items():
            out.print(_table(title, part))
        if topology_file is not None:
            says = "cannot run here as it is" if code else "can run here"
            out.print(f"{topology_file} {says}", soft_wrap=True)
    if code:
        raise typer.Exit(code)


def _table(title: str, part: Iterable[Found]) -> Table:
    table = new_table(title, "what", "", "found")
    for column in table.columns[1:]:
        column.justify = "left"
    table.columns[2].no_wrap, table.columns[2].overflow = False, "fold"
    for found in part:
        table.add_row(found.what, "NO" if found.exit_code else "", found.found)
    return table


# --- the machine ----------------------------------------------------------------------------------------------------


def _machine(changes: Changes) -> Iterator[Found]:
    import torch

    from dslth.learner import processor

    yield Found("dslth", f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    yield Found("torch", f"{torch.__version__}, {processor()}, {', '.join(gpus) or 'no GPU'}")
    others = ("numpy", "pyzmq", "pydantic", "matplotlib")
    yield Found("packages", ", ".join(f"{name} {_version(name) or 'missing'}" for name in others))
    yield Found("cores", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}")
    yield Found("memory", f"{limits.available_memory() / 1e9:.1f} GB available")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    yield Found("open files", "no limit" if most == resource.RLIM_INFINITY else f"{most:,} for a process")
    folder = str(changes.data_dir) if changes.data_dir else None
    for name in DataName:
        yield Found(f"data: {name}", _where(DataConfig(name=name, folder=folder)))
    yield Found("docker", _answer(["docker", "info", "--format", "{{.ServerVersion}}"], "no daemon answers"))
    yield Found("slurm", _answer(["sinfo", "--noheader", "--format=%P %D nodes %T"], "no cluster answers"))
    yield Found("ray", _version("ray") or "not installed")


def _version(package: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return ""


def _where(settings: DataConfig) -> str:
    found = data.find(settings)
    return str(found) if found else f"not there; a run would download it into {config.data_folder(settings)}"


def _answer(command: list[str], silence: str) -> str:
    """Return the first line that an engine's command answers, or what it means that it does not."""
    if shutil.which(command[0]) is None:
        return "not installed"
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)  # noqa: S603
        return next(iter(done.stdout.splitlines()), silence)
    return f"installed, {silence}"


# --- a topology file ------------------------------------------------------------------------------------------------


def _file(topology_file: str, changes: Changes, engine: EngineName) -> Iterator[Found]:
    try:
        settings, graph = options.read(topology_file, changes)
    except DslthError as error:
        yield Found("file", str(error), error.exit_code)
        return
    experiment = settings.experiment
    what = f"{experiment.model.title} on {experiment.data.title}, {experiment.rounds} rounds"
    yield Found("file", f"{graph.peers} peers, {len(graph.edges)} links, {settings.graph.kind}; {what}")
    virtual, here = engine == EngineName.BATCHED, engine != EngineName.RAY
    checks: dict[str, Callable[[], str]] = {"data": lambda: _where(experiment.data)}
    if data.find(experiment.data):  # what is not there is not downloaded to look at it
        checks["limits"] = lambda: preflight(settings, graph, virtual=virtual, here=here) or "fine"
        if here and not virtual:
            checks["memory"] = lambda: f"about {predicted_memory(settings, graph) / 1e9:.1f} GB for all peers"
    if here and not virtual:
        checks["keys"] = lambda: _keys(settings, graph)
        checks["ports"] = lambda: _ports(settings.network, graph)
    for name, check in checks.items():
        try:
            yield Found(name, check())
        except DslthError as error:
            yield Found(name, str(error), error.exit_code)


def _keys(settings: RunConfig, graph: Topology) -> str:
    if settings.network is None:
        return "not needed"
    keys.checked(settings, graph, insecure=False)
    return "those that are needed are there"


def _ports(network: NetworkConfig | None, graph: Topology) -> str:
    """Return which ports peers would listen on; raises AddressError if one is taken, or no port of this machine."""
    busy = [(peer, why) for peer in range(graph.peers) if (why := _unfit((network or NetworkConfig()).address(peer)))]
    if network is None:
        first = NetworkConfig().base_port
        taken = f"{len(busy)} of {first} to {first + graph.peers - 1} are taken" if busy else "as they come free"
        return f"dslth run takes free ones; those of dslth-peer: {taken}"
    if busy:
        (peer, why), more = busy[0], f" (and {len(busy) - 1} more)" if len(busy) > 1 else ""
        raise AddressError(f"peer {peer} cannot listen at {network.address(peer)}: {why}{more}")
    return f"{network.address(0)} ... {network.address(graph.peers - 1)} are free"


def _unfit(address: str) -> str:
    """Return why nobody can listen at an address on this machine; empty if somebody can."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    try:
        with closing(
            socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        ):
            return ""
    except socket.gaierror:
        return f"this machine does not know {host}; start that peer there, with dslth-peer"
    except OSError as error:
        return (error.strerror or "it cannot be used").lower()
