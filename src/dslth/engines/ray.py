"""Runs whose peers are Ray actors, each a process of its own somewhere in a cluster.

Ray places the processes and tells where they are; masks travel between the peers directly, as always, and reports come
back through Ray. A peer whose process or node is lost is restarted where there is room, and resumes from its
checkpoint: all nodes must see the run folder.
"""

import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from typing import Any

from dslth.config import NetworkConfig, RunConfig, Security
from dslth.engines.base import Failure, PeerJob, Surroundings, run_peer
from dslth.errors import ConfigError, PeerFailedError
from dslth.runs.events import Event
from dslth.runs.folder import RunFolder
from dslth.runs.sinks import Call
from dslth.stop import Stop

__all__ = ["Ray", "placed"]

TICK = 0.2
CONNECT_SECONDS = 10.0


class _Peer:
    """What runs in an actor's process: one peer in a thread, and answers to the driver."""

    def __init__(self, job: PeerJob) -> None:
        import ray

        self._job, self._host = job, ray.util.get_node_ip_address()
        self._book: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._addresses: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stop = Stop()
        self._failure: Failure | None = None
        self._thread = threading.Thread(target=self._run, name=f"dslth-peer-{job.peer}", daemon=True)
        self._thread.start()

    def address(self) -> str:
        """Return the address that the peer listens on, empty if it ended before."""
        while self._thread.is_alive() or not self._book.empty():
            with suppress(queue.Empty):
                return self._book.get(timeout=TICK)
        return ""

    def meet(self, addresses: Sequence[str]) -> None:
        """Take the addresses of all peers."""
        self._addresses.put(addresses)

    def events(self) -> tuple[list[Event], bool, Failure | None]:
        """Wait a moment for reports; return them, whether more may come, and why the peer failed if it did."""
        alive = self._thread.is_alive()
        taken: list[Event] = []
        with suppress(queue.Empty):
            taken.append(self._events.get(timeout=TICK))
            while True:
                taken.append(self._events.get_nowait())
        return taken, alive, self._failure

    def end(self) -> None:
        """Ask the peer to end."""
        self._stop.set()

    def _run(self) -> None:
        with socket.create_server((self._host, 0)) as free:
            address = f"tcp://{self._host}:{free.getsockname()[1]}"
        # a restarted peer has another address than its neighbours know
        job = replace(self._job, listen=address, advertise=address)
        try:
            run_peer(job, Surroundings(self._stop, self._meet, (Call(self._events.put),)))
        except Exception as error:
            self._failure = Failure.of(error)

    def _meet(self, address: str) -> Sequence[str]:
        self._book.put(address)
        while not self._stop.is_set():
            with suppress(queue.Empty):
                return self._addresses.get(timeout=TICK)
        return [address] * self._job.topology.peers


def placed(run: RunConfig, *, insecure: bool) -> RunConfig:
    """Leave a run's addresses to Ray; peers use the keys in the run folder, or talk unencrypted if ``insecure``."""
    return run.model_copy(update={"network": NetworkConfig(security=Security.NONE) if insecure else None})


class Ray:
    """The peers of a run as actors of a Ray cluster; see Engine.

    ``cluster`` is the cluster's address; without one, that of ``RAY_ADDRESS``, or a cluster on this machine alone.
    Raises ConfigError without Ray, or if no cluster answers.
    """

    def __init__(self, jobs: Sequence[PeerJob], cluster: str | None = None) -> None:
        # actors work elsewhere
        self._jobs = {job.peer: replace(job, folder=RunFolder(job.folder.path.resolve())) for job in jobs}
        self.met = False
        self._words = redirect_stdout(sys.stderr)  # Ray reports lost nodes on stdout
        self._words.__enter__()
        self._ray = _ray(cluster)
        self._actors: dict[int, Any] = {}
        self._book: dict[int, str] = {}
        self._asked: dict[Any, int] = {}
        self._failures: dict[int, Failure] = {}
        self._done: set[int] = set()
        for peer in self._jobs:
            self._start(peer)

    def _start(self, peer: int) -> None:
        nodes = sorted(node["NodeID"] for node in self._ray.nodes() if node["Alive"])
        strategies = self._ray.util.scheduling_strategies
        place = strategies.NodeAffinitySchedulingStrategy(nodes[peer % len(nodes)], soft=True)
        # no processors are reserved: peers of a lost node must find room elsewhere
        actor = self._ray.remote(_Peer).options(num_cpus=0, scheduling_strategy=place)
        self._actors[peer] = actor.remote(self._jobs[peer])
        self._asked[self._actors[peer].address.remote()] = peer

    def restart(self, peer: int) -> None:
        """Restart a peer whose process or node was lost."""
        del self._failures[peer]
        self._start(peer)

    def events(self, timeout: float) -> list[Event]:
        """Wait for the peers' answers: first their addresses, then reports."""
        taken: list[Event] = []
        if not self._asked:
            return taken
        ready, _ = self._ray.wait(list(self._asked), num_returns=len(self._asked), timeout=timeout)
        for asked in ready:
            peer = self._asked.pop(asked)
            try:
                said = self._ray.get(asked)
            except self._ray.exceptions.RayActorError:
                self._failures[peer] = Failure(PeerFailedError.exit_code, "its process or its node was lost")
                continue
            if isinstance(said, str):
                self._introduce(peer, said)
            else:
                taken += self._took(peer, *said)
        return taken

    def _introduce(self, peer: int, address: str) -> None:
        """Note a peer's address, empty if it failed; once all are known, tell the peers that wait for them."""
        again = peer in self._book
        if address:
            self._book[peer] = address
        self._asked[self._actors[peer].events.remote()] = peer
        if len(self._book) == len(self._actors):
            addresses = [self._book[other] for other in sorted(self._book)]
            for other in [peer] if again else self._actors:
                self._actors[other].meet.remote(addresses)
            self.met = True

    def _took(self, peer: int, events: list[Event], alive: bool, failure: Failure | None) -> list[Event]:
        if failure:
            self._failures[peer] = failure
        elif alive or events:
            self._asked[self._actors[peer].events.remote()] = peer
        else:
            self._done.add(peer)
        return events

    def running(self) -> set[int]:
        """Return the peers that have neither finished nor failed."""
        return self._actors.keys() - self._done - self._failures.keys()

    def ask_to_end(self) -> None:
        """Ask all peers to end."""
        for peer in self.running():
            self._actors[peer].end.remote()

    def end(self) -> None:
        """Disconnect from the cluster, which ends all actors of this run."""
        self._ray.shutdown()
        self._words.__exit__(None, None, None)

    def failures(self) -> dict[int, Failure]:
        """Return the peers that failed, and why."""
        return self._failures


def _ray(cluster: str | None) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError("--engine ray needs Ray: pip install 'ray>=2.40'") from None
    try:
        host, colon, port = (cluster or "").rpartition(":")
        if colon and "/" not in host:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=cluster, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=None)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--address {cluster}: no Ray cluster answers ({str(error).splitlines()[0]})") from None
    return ray
