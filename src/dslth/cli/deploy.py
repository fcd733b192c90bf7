"""Commands that write what a container engine or a cluster reads."""

from typing import Annotated

import typer

from dslth.cli.options import DebugOption, read
from dslth.deploy.compose import compose
from dslth.deploy.k8s import manifests

__all__ = ["register"]

FileArgument = Annotated[str, typer.Argument(metavar="TOPOLOGY", help="A path, or a name that comes with dslth.")]
ImageOption = Annotated[
    str | None, typer.Option(help="Image of the containers [default: dslth, built from the checkout in this folder].")
]
MemoryOption = Annotated[str, typer.Option(metavar="SIZE", help="Memory limit of a container, as in 512M.")]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command("compose")(_compose)
    app.command("k8s")(_k8s)


def _compose(
    file: FileArgument, memory: MemoryOption = "256M", image: ImageOption = None, debug: DebugOption = False
) -> None:
    """Print a Docker Compose file: a container a peer, and a collector that shows and keeps their reports."""
    settings, graph = read(file)
    settings.check_peers(graph.peers)
    print(compose(file, graph.peers, memory=memory, image=image), end="")  # noqa: T201


def _k8s(
    file: FileArgument,
    image: Annotated[str, typer.Option(help="Image of the pods, where the cluster finds it.")] = "dslth",
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory limit of a pod, as in 512Mi.")] = "256Mi",
    debug: DebugOption = False,
) -> None:
    """Print Kubernetes manifests: a StatefulSet of peers, and a Job that collects their reports."""
    settings, graph = read(file)
    settings.check_peers(graph.peers)
    print(manifests(file, settings, graph, image=image, memory=memory), end="")  # noqa: T201
