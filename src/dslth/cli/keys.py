"""``dslth keys``, and what the commands that run peers do about keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dslth import config, keys
from dslth.cli import options
from dslth.cli.app import App
from dslth.cli.options import TopologyArgument
from dslth.config import NetworkConfig, RunConfig, Security
from dslth.show.console import err
from dslth.topology import Topology

__all__ = ["InsecureOption", "KeyOptions", "checked", "keys_app", "secured"]

keys_app = App(help="Make the keys by which peers know each other.", no_args_is_help=True)

InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Talk unencrypted, to anybody who can connect, even over a network.")
]


@dataclass(frozen=True)
class KeyOptions:
    """How a peer, or the collector, finds keys for addresses that need them."""

    keys_dir: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            metavar="DIR",
            help="Folder of keys; makes this peer's own there if need be, and waits for the neighbours' public keys "
            "[default: the keys in NAME.keys beside the topology file NAME.yaml].",
        ),
    ] = None
    insecure: InsecureOption = False


@keys_app.command()
def make(
    topology_file: TopologyArgument,
    peer: Annotated[int | None, typer.Option("--id", help="Make the pair of this peer only.")] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to write [default: NAME.keys beside the file NAME.yaml]."),
    ] = None,
) -> None:
    """Make a key pair for each peer: public/peer-N.key, and private/peer-N.key, which no one else may read.

    If public halves were lost, it writes only those again. Every peer needs its own private key and its neighbours'
    public keys; a private key never needs to leave its machine.
    """
    settings, graph = options.read(topology_file)
    if peer is not None:
        config.check_peer(peer, graph.peers, "--id")
    network = settings.network or NetworkConfig()
    folder = out_dir or Path(network.keys or config.keys_folder(topology_file))
    peers = range(graph.peers) if peer is None else [peer]
    if lost := keys.restore(folder, peers):
        who = ", ".join(map(str, lost))
        err.print(f"wrote the lost public keys again in {folder}, of peers {who}", soft_wrap=True)
        return
    keys.make(folder, peers)
    pairs = "a key pair" if len(peers) == 1 else f"{len(peers)} key pairs"
    err.print(f"made {pairs} in {folder}; each private key is for its own peer alone", soft_wrap=True)


def checked(settings: RunConfig, graph: Topology, *, insecure: bool) -> RunConfig:
    """Check, before peers start on this machine, that they have the keys that their addresses need.

    Raises SecurityError; warns if masks would travel unencrypted over a network.
    """
    network = settings.network
    if network is None:  # they will listen on free ports of the loopback device
        return settings
    if insecure:
        network = network.model_copy(update={"security": Security.NONE})
    _warn(network, [network.address(peer) for peer in range(graph.peers)])
    for peer in range(graph.peers):
        keys.choose(peer, network, graph.neighbours(peer), network.address(peer))
    return settings.model_copy(update={"network": network})


def secured(settings: RunConfig, topology_file: str, addresses: Sequence[str], typed: KeyOptions) -> RunConfig:
    """Decide by the addresses of a peer and its neighbours whether it needs keys, and where they are.

    The result's ``network.security`` is ``curve`` or ``none``. Warns if masks would travel unencrypted over a network.
    """
    insecure, folder = typed.insecure, typed.keys_dir
    if insecure and folder is not None:
        raise typer.BadParameter("give either --keys or --insecure")
    network = settings.network or NetworkConfig()
    network = network.model_copy(
        update={
            "security": Security.NONE if insecure else Security.CURVE if folder is not None else network.security,
            "keys": str(folder or network.keys or config.keys_folder(topology_file)),
        }
    )
    _warn(network, addresses)
    security = Security.CURVE if keys.needed(network, addresses) else Security.NONE
    return settings.model_copy(update={"network": network.model_copy(update={"security": security})})


def _warn(network: NetworkConfig, addresses: Sequence[str]) -> None:
    if network.security == Security.NONE and not all(map(keys.is_loopback, addresses)):
        err.print(
            "warning: no keys: masks travel unencrypted, and anybody who can connect can pose as a peer",
            soft_wrap=True,
        )
