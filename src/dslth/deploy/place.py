"""Which peer this process is, and where the others are: from the command line, Slurm, or the host's name."""

import re
from collections.abc import Mapping

from pydantic import ValidationError

from dslth import config
from dslth.deploy import slurm
from dslth.errors import ConfigError, UnknownPeerError

__all__ = ["find"]


def find(
    peer: int | None,
    host: str | None,
    network: config.NetworkConfig | None,
    peers: int,
    environment: Mapping[str, str],
    hostname: str,
) -> tuple[int, config.NetworkConfig]:
    """Work out a peer's id, and where all peers are.

    ``peer`` and ``host`` are the options of those names. Without ``peer``, the id is that of the task of a Slurm job
    step, with the peers on the nodes of that step, or the number that the host's name ends with, as in ``peer-3``.

    Raises ConfigError and UnknownPeerError.
    """
    network = network or config.NetworkConfig()
    step = slurm.step(environment) if peer is None else None
    if step is not None:
        peer = step.task
        if len(step.hosts) != peers:
            raise ConfigError(f"Slurm: a step of {len(step.hosts)} tasks for {peers} peers; srun -n {peers}")
    if peer is None:
        number = re.search(r"\d+$", hostname.partition(".")[0])
        if number is None:
            raise UnknownPeerError(f"--id is missing, and this host's name, {hostname!r}, does not end with a number")
        peer = int(number[0])
    config.check_peer(peer, peers, "--id" if step is None else "Slurm")
    if host is not None:
        network = _at(host, network)
    elif step is not None:
        ports = [network.address(other).rpartition(":")[2] for other in range(peers)]
        addresses = tuple(f"tcp://{node}:{port}" for node, port in zip(step.hosts, ports, strict=True))
        network = network.model_copy(update={"addresses": addresses})
    return peer, network


def _at(host: str, network: config.NetworkConfig) -> config.NetworkConfig:
    """Read ``--host``: ``peer-{id}`` keeps the file's ports, ``peer-{id}:47100`` has one for all."""
    found = re.fullmatch(r"(.*?)(?::(\d+))?", host)
    name, port = found.groups() if found else (host, None)
    settings = network.model_dump(exclude={"addresses"}) | {"host": name} | ({"port": port} if port else {})
    try:
        return config.NetworkConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"--host {host}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
