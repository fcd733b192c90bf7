"""Peers as threads of this process, exchanging through memory."""

import queue
import threading
from collections.abc import Sequence
from dataclasses import replace

from dslth.engines.base import Failure, PeerJob, Surroundings, run_peer
from dslth.errors import PeerFailedError
from dslth.runs.events import Event
from dslth.runs.sinks import Call
from dslth.stop import Stop

__all__ = ["Threads"]

END_SECONDS = 10.0
"""How long threads that were asked to end are waited for."""


class Threads:
    """A thread per peer; see Engine. ``met`` from the start: their addresses are their ids."""

    met = True

    def __init__(self, jobs: Sequence[PeerJob]) -> None:
        from dslth.transport.memory import MemoryNetwork

        self._jobs = {job.peer: replace(job, listen=f"memory://{job.peer}") for job in jobs}
        addresses = [job.listen for job in self._jobs.values()]
        self._stop = Stop()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        report, self._network = Call(self._events.put), MemoryNetwork()
        self._surroundings = Surroundings(self._stop, lambda address: addresses, (report,), self._network)
        self._failures: dict[int, Failure] = {}
        self._threads: dict[int, threading.Thread] = {}
        for peer in self._jobs:
            self._start(peer)

    def _start(self, peer: int) -> None:
        thread = threading.Thread(target=self._run, args=(peer,), name=f"dslth-peer-{peer}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._stop.set()
            raise PeerFailedError(f"{thread.name} cannot be started: {error}; is there memory left for it?") from None
        self._threads[peer] = thread

    def _run(self, peer: int) -> None:
        try:
            run_peer(self._jobs[peer], self._surroundings)
        except Exception as error:
            self._failures[peer] = Failure.of(error)

    def events(self, timeout: float) -> list[Event]:
        """Wait for reports."""
        taken: list[Event] = []
        try:
            while True:
                taken.append(self._events.get(timeout=0.0 if taken else timeout))
        except queue.Empty:
            return taken

    def running(self) -> set[int]:
        """Return the peers whose thread is alive."""
        return {peer for peer, thread in self._threads.items() if thread.is_alive()}

    def restart(self, peer: int) -> None:
        """Restart a peer that failed."""
        self._threads[peer].join()
        del self._failures[peer]
        self._start(peer)

    def ask_to_end(self) -> None:
        """Set the flag that all peers check, and wake those that wait."""
        self._stop.set()
        self._network.wake()

    def end(self) -> None:
        """Wait for the threads; none can be killed."""
        self.ask_to_end()
        for thread in self._threads.values():
            thread.join(END_SECONDS)

    def failures(self) -> dict[int, Failure]:
        """Return the peers that failed, and why."""
        return self._failures
