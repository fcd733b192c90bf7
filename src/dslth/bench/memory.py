"""What the processes of a local run take of the machine's memory, as the kernel counts it: no peer is asked."""

import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from types import TracebackType
from typing import Any, Self

import psutil

from dslth.config import RunConfig
from dslth.engines.base import predicted_memory
from dslth.engines.supervisor import run_local
from dslth.errors import PeerFailedError
from dslth.runs.folder import RunFolder
from dslth.show.tables import Fitted
from dslth.topology import Topology

__all__ = ["Figure", "Memory", "as_json", "measure", "table"]

SECONDS = 0.2
"""From one look at a process to the next; a peak that is shorter is missed."""


class Memory:
    """Watches the peers that this process runs while the ``with`` block is open; Linux only.

    A process's bytes are its *proportional set size*: pages that several share are divided among them. ``together`` is
    the most that all peers, and the server that they are forked from, took at one time, ``peers`` what each peer took
    then, by process id.
    """

    def __init__(self) -> None:
        self.peers: dict[int, int] = {}
        self.together = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(SECONDS):
            servers = me.children()
            peers = [peer for server in servers for peer in _children(server)]  # a peer is its server's child
            now = {peer.pid: _shared_out(peer) for peer in peers}
            together = sum(now.values()) + sum(map(_shared_out, servers))
            if together > self.together:
                self.together, self.peers = together, now


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return process.children()
    return []


def _shared_out(process: psutil.Process) -> int:
    """Return a process's proportional set size, in bytes; 0 once it has ended."""
    with suppress(psutil.Error):
        return int(process.memory_full_info().pss)
    return 0


@dataclass(frozen=True)
class Figure:
    """Megabytes (10**6 bytes): those of all processes when they took most, of a mean peer then, and as predicted."""

    peers: int
    together_mb: float
    peer_mb: float
    predicted_mb: float


def measure(run: RunConfig, graph: Topology, folder: Path) -> Figure:
    """Run all peers as processes of this machine, into a run folder that exists; raises the error that the run has."""
    with Memory() as memory:
        run_local(run, graph, RunFolder(folder), orphans=False).measured()
    if not memory.peers:
        raise PeerFailedError("the run was over before its memory was looked at; give it more --rounds")
    predicted = predicted_memory(run, graph)
    return Figure(graph.peers, memory.together / 1e6, mean(memory.peers.values()) / 1e6, predicted / 1e6)


def table(figure: Figure) -> Fitted:
    """Show what was measured beside what was predicted."""
    columns = {
        "peers": [f"{figure.peers}"],
        "MB a peer": [f"{figure.peer_mb:.0f}"],
        "MB together": [f"{figure.together_mb:,.0f}"],
        "predicted": [f"{figure.predicted_mb:,.0f}"],
        "predicted / measured": [f"{figure.predicted_mb / figure.together_mb:.2f}"],
    }
    note = "pages that processes share are divided among them; the launcher is predicted too, and not measured"
    return Fitted("memory, when all took most", columns, note=note)


def as_json(figure: Figure) -> dict[str, Any]:
    """Return the figure, as ``--json`` prints it."""
    return asdict(figure)
