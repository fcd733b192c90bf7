"""A Docker Compose file for a topology: a container for each peer, and one that collects their reports.

The file works with Compose 1.29 and 2 and with ``docker stack deploy``, so it has no ``version``, and memory limits
have the form that all three understand.
"""

import json
import os
from pathlib import Path

from dslth import config
from dslth.config import GraphFile, RunConfig

__all__ = ["PEER_PORT", "REPORT_PORT", "compose", "place_in_container"]

PEER_PORT = 47100
REPORT_PORT = 47200

_HEAD = """\
# {count} peers and a collector of their reports, each in a container. Written by: dslth compose {name}
#
#     docker compose build && docker compose up    ends by itself, with a table and exit code 0
#     docker compose run --rm --no-deps collector dslth inspect /runs
#     docker compose down --volumes                deletes the run and the keys
#
# DSLTH_DATA is a folder of data sets for the peers (digits need none). See docs/deploy.md.

# What peers share; each has a volume of its own besides, for its private key, checkpoints and reports.
x-volumes:
  - &data ${{DSLTH_DATA:-data}}:/data:ro
  - &keys keys:/state/keys/public
  - &tickets tickets:/state/tickets

x-peer: &peer
  image: {image}
{build}  command: {command}
  init: true
  restart: on-failure:5
  deploy:
    endpoint_mode: dnsrr
    resources: {{limits: {{memory: {memory}}}}}
    restart_policy: {{condition: on-failure}}

services:
  collector:
    <<: *peer
    command: {collect}
    restart: "no"
    healthcheck: {{disable: true}}
    volumes:
      - collector:/runs/keys
      - keys:/runs/keys/public
      - runs:/runs
      - tickets:/runs/tickets:ro
{mount}    deploy:
      endpoint_mode: dnsrr
      resources: {{limits: {{memory: {memory}}}}}
      restart_policy: {{condition: none}}

"""
_BUILD = """\
  build:
    context: .
    dockerfile: peers/Dockerfile
    args: {TORCH: "${TORCH:-torch==2.13.0}", TORCH_INDEX: "${TORCH_INDEX:-}"}
"""
_FOOT = """
volumes:
  collector:
  data:
  keys:
  runs:
  tickets:
"""


def place_in_container(file: Path | str) -> tuple[str, Path | None]:
    """Return a topology file's name inside a container, and its folder if that must be mounted.

    A file that comes with dslth is in the image; any other is mounted with the files beside it.
    """
    path = Path(file)
    shipped = config.shipped("topologies") / path.name
    if not path.is_file() or (shipped.is_file() and shipped.samefile(path)):
        return path.name, None
    return f"/topologies/{path.name}", path.parent


def compose(file: Path | str, peers: int, run: RunConfig, *, memory: str = "256M", image: str | None = None) -> str:
    """Write the Compose file of a topology of ``peers`` peers.

    Without ``image`` the containers' image is built from the checkout in the file's folder. Where each peer has data of
    its own, its container has those alone: the topology file is mounted, not its folder.
    """
    name, folder = place_in_container(file)
    own = config.as_written(file)["experiment"]["data"]["path"] if run.experiment.data.each_its_own else None
    mounts = [] if folder is None else [_quoted(f"{_beside(folder)}:/topologies:ro")]
    if own is not None:
        mounts = _private(Path(file), run)
    peer = ["dslth-peer", "--topology", name, "--host", f"peer-{{id}}:{PEER_PORT}", "--out", "/state"]
    peer += ["--reports", f"tcp://collector:{REPORT_PORT}", "--keys", "/state/keys", "--join-timeout", "180", "--quiet"]
    collect = ["dslth", "collect", name, "--listen", f"tcp://*:{REPORT_PORT}", "--keys", "/runs/keys", "--out", "/runs"]
    head = _HEAD.format(
        count=f"{peers}",
        name=Path(file).name,
        image=image or "dslth",
        build="" if image else _BUILD,
        command=_quoted(peer),
        collect=_quoted(collect),
        mount="".join(f"      - {mount}\n" for mount in mounts),
        memory=memory,
    )
    services = []
    for i in range(peers):
        data = "*data" if own is None else _mount(Path(file).parent, own.replace("{id}", str(i)))
        volumes = ", ".join([data, "*keys", "*tickets", *mounts, f"'peer-{i}:/state'"])
        services.append(f"  peer-{i}: {{<<: *peer, hostname: peer-{i}, volumes: [{volumes}]}}\n")
    return head + "".join(services) + _FOOT + "".join(f"  peer-{i}:\n" for i in range(peers))


def _private(file: Path, run: RunConfig) -> list[str]:
    """Return mounts of the files that a peer of a topology needs besides its data, as the topology file names them."""
    written = config.as_written(file)
    code = run.experiment.model.name.rpartition(":")[0] if run.experiment.model.own else ""
    named = [file.name]
    if code.endswith(".py"):
        named.append(written["experiment"]["model"]["name"].rpartition(":")[0])
    if isinstance(run.graph, GraphFile):
        named.append(written["graph"]["file"])
    return [_mount(file.parent, path) for path in named]


def _mount(folder: Path, path: str) -> str:
    """Mount what a topology file in ``folder`` names so that it finds it in a container, where it lies elsewhere."""
    here = path if os.path.isabs(path) else _beside(folder / path)
    return _quoted(f"{here}:{os.path.normpath(Path('/topologies') / path)}:ro")


def _quoted(words: str | list[str]) -> str:
    return json.dumps(words).replace("$", "$$")  # a dollar is Compose's own


def _beside(folder: Path) -> str:
    relative = Path(os.path.relpath(folder))
    return f"./{relative}" if not relative.is_absolute() else str(relative)
