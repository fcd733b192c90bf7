"""``dslth-peer``: one peer in this process."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dslth import config
from dslth import keys as key_files
from dslth.cli import keys, options
from dslth.cli.app import App
from dslth.cli.guard import guarded
from dslth.cli.keys import KeyOptions
from dslth.cli.options import Changes, FaultsOption, JoinTimeoutOption, JsonOption, TopologyOption, VersionOption
from dslth.config import RunConfig
from dslth.deploy import place, reports
from dslth.engines.base import PeerJob, Surroundings, end_on_signals, run_peer
from dslth.engines.supervisor import check_resumable
from dslth.errors import ConfigError
from dslth.runs.checkpoint import Checkpoints
from dslth.runs.events import Event, Joined, RoundReport
from dslth.runs.folder import RunFolder
from dslth.runs.sinks import Call
from dslth.runs.summary import check_played, summarise
from dslth.show.console import err
from dslth.show.words import amount, decimal, percent
from dslth.stop import Stop
from dslth.topology import Topology
from dslth.transport import faulty

__all__ = ["main", "peer"]

app = App(name="dslth-peer", add_completion=True)


@dataclass(frozen=True)
class AddressOptions:
    """Where peers are, this one above all, and where its reports go."""

    listen: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Listen here, as in tcp://0.0.0.0:47100 [default: the topology's address]."
        ),
    ] = None
    advertise: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Tell neighbours that this peer is here, not where the topology says."),
    ] = None
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST[:PORT]", help="Where peers are, in place of the file's: peer-{id}:47100."),
    ] = None
    reports: Annotated[
        str | None, typer.Option("--reports", metavar="ADDRESS", help="Send reports to a dslth collect there as well.")
    ] = None


@app.command()
def peer(
    topology_file: TopologyOption,
    peer: Annotated[
        int | None,
        typer.Option(
            "--id",
            help="Which peer of the topology to run [default: srun's task, or the number at the end of the host name].",
        ),
    ] = None,
    changes: Changes = Changes(),
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder; peers may share one [default: runs/NAME].")
    ] = None,
    typed: AddressOptions = AddressOptions(),
    key_options: KeyOptions = KeyOptions(),
    faults: FaultsOption = None,
    join_timeout: JoinTimeoutOption = 60.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line for each round.")] = False,
    as_json: JsonOption = False,
    version: VersionOption = False,
) -> None:
    """Run one peer of a topology in this process; the others may start before or after it, here or elsewhere.

    Without a 'network' section in the file, peer i listens on 127.0.0.1, port 47100 + i; in a Slurm job step, on its
    node. Restarted with the same --out it resumes from its checkpoint; once it has finished, it starts over.
    """
    settings, graph = options.read(topology_file, changes)
    peer, network = place.find(peer, typed.host, settings.network, graph.peers, os.environ, platform.node())
    settings = settings.model_copy(update={"network": network})
    addresses = [network.address(other) for other in range(graph.peers)]
    listen = typed.listen or _bindable(addresses[peer])
    injected = faulty.parse(faults) if faults is not None else None
    neighbours = graph.neighbours(peer)
    advertise = _full("--advertise", typed.advertise) if typed.advertise else ""
    others = [address for address in (advertise, typed.reports) if address]
    nearby = [listen, *(addresses[neighbour] for neighbour in neighbours), *others]
    how = keys.secured(settings, topology_file, nearby, key_options)
    options.look_at_data(settings, graph, peer)
    folder = RunFolder(out_dir or Path("runs") / Path(topology_file).stem)
    folder.check_free()

    def begin(address: str) -> list[str]:
        _begin(folder, peer, settings, graph)
        return addresses

    stop = Stop()
    with end_on_signals(stop):
        if (keys_dir := key_options.keys_dir) is not None:
            key_files.ensure(keys_dir, peer)
            others_keys = [*neighbours, *([graph.peers] if typed.reports else [])]
            key_files.wait_for(keys_dir, others_keys, join_timeout, stop)
        with reports.sending(typed.reports, peer, graph.peers, how.network) as send:

            def watch(event: Event) -> None:
                send(event)
                if not (as_json or quiet):
                    _say(event, settings.experiment.rounds)

            job = PeerJob(
                peer,
                how,
                graph,
                folder,
                listen=listen,
                advertise=advertise,
                join_timeout=join_timeout,
                faults=injected,
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


def main() -> None:
    """Run ``dslth-peer``."""
    guarded(app)


def _begin(folder: RunFolder, peer: int, settings: RunConfig, graph: Topology) -> None:
    """Begin in the run folder, now that this peer's files are locked and its port is bound."""
    folder.check_free()
    checkpoints = Checkpoints(folder.checkpoints(peer))
    if folder.have_finished([peer], settings.experiment.rounds):
        checkpoints.clear()
    resumed = bool(checkpoints.files())
    if resumed and (folder.path / "topology.yaml").is_file():
        check_resumable(settings, graph, folder)
    folder.begin(settings, graph, resumed=resumed)
    if not resumed:
        folder.reports(peer).unlink(missing_ok=True)  # those of an earlier run


def _say(event: Event, rounds: int) -> None:
    """Print a line about what a peer did."""
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
