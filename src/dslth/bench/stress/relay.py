"""A network between peers that can be cut, held and slowed: a relay on loopback for each directed edge."""

import asyncio
import json
import os
import threading
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil

from dslth import files
from dslth.engines.base import PeerJob, Surroundings
from dslth.runs.folder import RunFolder
from dslth.topology import Topology

__all__ = ["Edge", "Relays", "Whereabouts", "across", "behind_relays", "directed", "whereabouts"]

T = TypeVar("T")
Edge = tuple[int, int]
"""From the peer that connects to the peer that listens."""
HOST = "127.0.0.1"
CHUNK = 1 << 14


class Whereabouts(NamedTuple):
    """A peer's process, its start (Unix time), and the port that it listens on."""

    pid: int
    born: float
    port: int


class Relays:
    """The relays, in a thread of their own until ``close``.

    ``target`` returns the port that a peer listens on, None while that is not known. ``ports`` is where the relay of
    each edge listens.
    """

    def __init__(self, edges: Iterable[Edge], target: Callable[[int], int | None]) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dslth-relays", daemon=True)
        self._thread.start()
        self._relays: dict[Edge, _Relay] = {edge: self._do(_Relay.open(self, edge)) for edge in edges}
        self.ports: Mapping[Edge, int] = {edge: relay.port for edge, relay in self._relays.items()}

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    def cut(self, edges: Iterable[Edge]) -> None:
        """Break the edges' connections, and accept no new ones until the edges are healed."""
        self._do(self._each(edges, _Relay.cut))

    def hold(self, edges: Iterable[Edge]) -> None:
        """Let nothing through, silently, as a network that loses all packets, until the edges are healed."""
        self._do(self._each(edges, _Relay.hold))

    def heal(self, edges: Iterable[Edge]) -> None:
        """Let the edges carry again; what was held arrives."""
        self._do(self._each(edges, _Relay.heal))

    def slow(self, edges: Iterable[Edge], rate: float) -> None:
        """Let no more than ``rate`` bytes per second through a connection, in each direction."""
        for edge in edges:
            self._relays[edge].rate = rate

    def close(self) -> None:
        """Cut everything and end the thread."""
        self._do(self._each(self._relays, _Relay.close))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _each(self, edges: Iterable[Edge], what: "Callable[[_Relay], Coroutine[Any, Any, None]]") -> None:
        for edge in edges:
            await what(self._relays[edge])

    def target(self, peer: int) -> int | None:
        """Return the port that a peer listens on now."""
        return self._target(peer)


class _Relay:
    """The relay of one edge; everything in it happens in the relays' thread."""

    def __init__(self, relays: Relays, edge: Edge) -> None:
        self._relays, self._edge = relays, edge
        self._flows = asyncio.Event()
        self._flows.set()
        self._is_cut = False
        self._serving: set[asyncio.Task[None]] = set()
        self.rate = float("inf")

    @classmethod
    async def open(cls, relays: Relays, edge: Edge) -> "_Relay":
        relay = cls(relays, edge)
        relay._server = await asyncio.start_server(relay._serve, HOST, 0, limit=CHUNK)
        relay.port = relay._server.sockets[0].getsockname()[1]
        return relay

    _server: asyncio.Server
    port: int

    async def cut(self) -> None:
        self._is_cut = True
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)

    async def hold(self) -> None:
        self._flows.clear()

    async def heal(self) -> None:
        self._is_cut = False
        self._flows.set()

    async def close(self) -> None:
        self._server.close()
        await self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (start_server makes one)
        self._serving.add(task)
        ends = [writer]
        with suppress(OSError, asyncio.CancelledError):
            port = None if self._is_cut else self._relays.target(self._edge[1])
            if port is not None:
                there, out = await asyncio.open_connection(HOST, port, limit=CHUNK)
                ends.append(out)
                both = [asyncio.ensure_future(self._pump(*way)) for way in ((reader, out), (there, writer))]
                try:
                    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in both:
                        way.cancel()
                    await asyncio.gather(*both, return_exceptions=True)
        for end in ends:
            end.transport.abort()
        self._serving.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK if self.rate == float("inf") else 1 + int(self.rate / 20)):
            await asyncio.sleep(len(chunk) / self.rate)
            await self._flows.wait()
            writer.write(chunk)
            await writer.drain()


# --- peers behind relays --------------------------------------------------------------------------------------------


def directed(topology: Topology) -> list[Edge]:
    """Return both directions of each link."""
    return [edge for a, b in topology.edges for edge in ((a, b), (b, a))]


def across(topology: Topology, one_side: Collection[int]) -> list[Edge]:
    """Return the directed edges between ``one_side`` and the others."""
    return [(a, b) for a, b in directed(topology) if (a in one_side) != (b in one_side)]


def behind_relays(job: PeerJob, surroundings: Surroundings, *, ports: Mapping[Edge, int]) -> Surroundings:
    """Make a peer reach its neighbours through relays, and note where it listens itself; see ``PeerJob.surround``."""

    def through_relays(address: str) -> Sequence[str]:
        me = Whereabouts(os.getpid(), psutil.Process().create_time(), int(address.rpartition(":")[2]))
        files.replace(_note(job.folder, job.peer), json.dumps(me).encode())
        addresses = list(surroundings.meet(address))
        for neighbour in job.topology.neighbours(job.peer):
            addresses[neighbour] = f"tcp://{HOST}:{ports[job.peer, neighbour]}"
        return addresses

    return replace(surroundings, meet=through_relays)


def whereabouts(folder: RunFolder, peer: int) -> Whereabouts | None:
    """Return where a peer behind relays is; None if it has not started yet."""
    try:
        return Whereabouts(*json.loads(_note(folder, peer).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _note(folder: RunFolder, peer: int) -> Path:
    return folder.path / "processes" / f"peer-{peer}.json"
