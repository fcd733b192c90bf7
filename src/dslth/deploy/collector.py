"""Takes in the reports that peers elsewhere send, and keeps them in a run folder of its own."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import zmq

from dslth.config import RunConfig
from dslth.errors import AddressError, MissingFileError, PeerFailedError
from dslth.events import Event, Finished, RoundReport, parse
from dslth.runfolder import RunFolder
from dslth.sinks import JsonLines
from dslth.topology import Topology

__all__ = ["Collector"]

LARGEST = 1 << 20
"""Bytes of a report at most: libzmq cuts off whoever sends more."""
TICK = 0.2


class Collector:
    """Reports of all peers of a run, by way of one PULL socket, into a run folder.

    A folder whose run has not finished is gone on with; a finished one is begun anew. What is not a report of one of
    the run's peers is dropped, and counted in ``refused``.
    """

    def __init__(self, run: RunConfig, topology: Topology, folder: RunFolder) -> None:
        self.refused = 0
        self._peers, self._rounds, self._folder = topology.peers, run.experiment.rounds, folder
        self._finished: set[int] = set()
        self._outputs: dict[int, JsonLines] = {}
        self._context = zmq.Context()
        self._pull = self._context.socket(zmq.PULL)
        self._pull.setsockopt(zmq.LINGER, 0)
        self._pull.setsockopt(zmq.MAXMSGSIZE, LARGEST)
        if (folder.path / "summary.json").exists():
            for old in [*folder.path.glob("peers/peer-*.jsonl"), folder.path / "summary.json"]:
                old.unlink(missing_ok=True)
        if not any(folder.path.glob("peers/peer-*.jsonl")):
            folder.begin(run, topology)

    def listen(self, address: str) -> str:
        """Listen, and give the address with the real port; AddressError where that is not possible."""
        try:
            self._pull.bind(address)
        except zmq.ZMQError as error:
            reason = zmq.strerror(error.errno or 0).lower()
            raise AddressError(f"cannot listen on {address}: {reason}; choose another --listen") from None
        return self._pull.getsockopt_string(zmq.LAST_ENDPOINT)

    def collect(self, stop: threading.Event, watch: Callable[[Event], None], patience: float) -> None:
        """Take reports until all peers have finished their rounds, or ``stop`` is set.

        Raises PeerFailedError where no report comes for ``patience`` seconds.
        """
        with suppress(MissingFileError):
            for events in self._folder.events().values():
                for event in events:
                    self._follow(event)
                    watch(event)
        heard = time.monotonic()
        while not stop.is_set() and (missing := set(range(self._peers)) - self._finished):
            for event in self._received():
                self._keep(event)
                self._follow(event)
                watch(event)
                heard = time.monotonic()
            if time.monotonic() > heard + patience:
                names = ", ".join(map(str, sorted(missing)))
                raise PeerFailedError(f"no report for {patience:g} s, and these peers have not finished: {names}")

    def _received(self) -> Iterator[Event]:
        if not self._pull.poll(int(1000 * TICK)):
            return
        frames = self._pull.recv_multipart()
        event = parse(frames[0]) if len(frames) == 1 else None
        if event is None or not 0 <= event.peer < self._peers:
            self.refused += 1
        else:
            yield event

    def _keep(self, event: Event) -> None:
        if event.peer not in self._outputs:
            self._outputs[event.peer] = JsonLines(self._folder.reports(event.peer), append=True)
        self._outputs[event.peer].emit(event)

    def _follow(self, event: Event) -> None:
        if isinstance(event, Finished) and event.rounds_completed >= self._rounds:
            self._finished.add(event.peer)
        elif isinstance(event, RoundReport):
            self._finished.discard(event.peer)  # it began anew

    def close(self) -> None:
        """Let everything go."""
        for output in self._outputs.values():
            output.close()
        self._pull.close()
        self._context.term()
