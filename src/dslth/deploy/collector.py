"""Keeps the reports of peers that run elsewhere in a run folder of its own, and knows when all have finished."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from dslth.config import RunConfig
from dslth.engines.inbox import Inbox
from dslth.errors import MissingFileError, PeerFailedError
from dslth.runs.events import Event, Finished, RoundReport
from dslth.runs.folder import RunFolder
from dslth.runs.sinks import JsonLines
from dslth.stop import Stop
from dslth.terminal import say
from dslth.topology import Topology

__all__ = ["Collector"]

TICK = 0.2
SPARE = 1_000
PER_ROUND = 10
"""Reports kept of a peer, at most: SPARE, and in each round PER_ROUND for itself and for each neighbour."""


class Collector:
    """The run folder of peers that run elsewhere.

    A folder whose run has not finished is continued; a finished run is replaced by a new one.
    """

    def __init__(self, run: RunConfig, topology: Topology, folder: RunFolder) -> None:
        self._peers, self._rounds, self._folder = topology.peers, run.experiment.rounds, folder
        self._finished: set[int] = set()
        self._most = [
            SPARE + PER_ROUND * self._rounds * (1 + len(topology.neighbours(peer))) for peer in range(self._peers)
        ]
        self._kept: Counter[int] = Counter()
        self._outputs: dict[int, JsonLines] = {}
        if (folder.path / "summary.json").exists():
            for old in [*folder.path.glob("peers/peer-*.jsonl"), folder.path / "summary.json"]:
                old.unlink(missing_ok=True)
        if not any(folder.path.glob("peers/peer-*.jsonl")):
            folder.begin(run, topology)

    def collect(self, inbox: Inbox, stop: Stop, watch: Callable[[Event], None], patience: float) -> None:
        """Take reports until all peers have finished their rounds, or ``stop`` is set.

        Raises PeerFailedError if no report comes for ``patience`` seconds.
        """
        with suppress(MissingFileError):
            for events in self._folder.events().values():
                for event in events:
                    self._kept[event.peer] += 1
                    self._follow(event)
                    watch(event)
        heard = time.monotonic()
        while not stop.is_set() and (missing := set(range(self._peers)) - self._finished):
            received = inbox.receive(TICK)
            if received is not None:
                self._keep(received)
                self._follow(received)
                watch(received)
                heard = time.monotonic()
            elif time.monotonic() > heard + patience:
                names = ", ".join(map(str, sorted(missing)))
                raise PeerFailedError(f"no report for {patience:g} s, and these peers have not finished: {names}")

    def _keep(self, event: Event) -> None:
        self._kept[event.peer] += 1
        over = self._kept[event.peer] - self._most[event.peer]
        if over == 1:
            say(f"dslth: peer {event.peer} sends more reports than its rounds can need; the rest is not kept")
        if over > 0:
            return
        if event.peer not in self._outputs:
            self._outputs[event.peer] = JsonLines(self._folder.reports(event.peer), append=True)
        self._outputs[event.peer].emit(event)

    def _follow(self, event: Event) -> None:
        if isinstance(event, Finished) and event.rounds_completed >= self._rounds:
            self._finished.add(event.peer)
        elif isinstance(event, RoundReport):
            self._finished.discard(event.peer)  # it started over

    def close(self) -> None:
        """Close the folder's files."""
        for output in self._outputs.values():
            output.close()
