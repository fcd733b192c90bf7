"""Commands that write the files of a container engine or a cluster."""

from typing import Annotated

import typer

from dslth.cli.options import TopologyArgument, read
from dslth.deploy import compose as docker_compose
from dslth.deploy import k8s as kubernetes

__all__ = ["compose", "k8s"]


def compose(
    file: TopologyArgument,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory limit of a container, as in 512M.")] = "256M",
    image: Annotated[
        str | None,
        typer.Option(help="Image of the containers [default: dslth, built from the checkout in this folder]."),
    ] = None,
) -> None:
    """Print a Docker Compose file: a container a peer, and a collector that shows and keeps their reports."""
    settings, graph = read(file)
    settings.check_peers(graph.peers)
    print(docker_compose.compose(file, graph.peers, settings, memory=memory, image=image), end="")  # noqa: T201


def k8s(
    file: TopologyArgument,
    image: Annotated[str, typer.Option(help="Image of the pods, as the cluster can find it.")] = "dslth",
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory limit of a pod, as in 512Mi.")] = "256Mi",
) -> None:
    """Print Kubernetes manifests: a StatefulSet of peers, and a Job that collects their reports."""
    settings, graph = read(file)
    settings.check_peers(graph.peers)
    print(kubernetes.manifests(file, settings, graph, image=image, memory=memory), end="")  # noqa: T201
