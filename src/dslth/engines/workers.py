"""Learners of many peers in a few processes, one a core: who is asked to learn answers with what there is to send."""

import multiprocessing
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from signal import SIG_IGN, SIG_UNBLOCK, SIGINT, SIGTERM, pthread_sigmask, signal
from typing import Any

from dslth.engines import server
from dslth.engines.base import PeerJob, mask_learner
from dslth.learner import Common, processor
from dslth.peer import Method
from dslth.runs import tickets
from dslth.runs.events import Accuracies

__all__ = ["Known", "Turn", "Workers"]

CHUNK = 50
"""Learners that are made at a time: Ctrl-C waits for them."""


@dataclass(frozen=True)
class Known:
    """What the others must know of a peer's method, see ``Method``; ``processor`` is what it computes with."""

    sizes: tuple[int, ...]
    ones: tuple[int, ...]
    settings: Mapping[str, str]
    training_samples: int
    evaluate_every: int
    processor: str


@dataclass(frozen=True)
class Turn:
    """What came of a peer's turn: its accuracies after the round before, if asked for, and what it sends in this one.

    After the last round ``message`` is the result, and there is no loss.
    """

    accuracies: Accuracies | None
    message: Any
    loss: float = 0.0


class Workers:
    """The processes; a peer's learner stays in one. A method that raises does so where its answer is asked for.

    If a process dies, so do all answers of its peers: BrokenProcessPool, from ``concurrent.futures``.
    """

    def __init__(self, jobs: Sequence[PeerJob]) -> None:
        count = min(len(jobs), len(os.sched_getaffinity(0)))
        self._pools = [ProcessPoolExecutor(1, server.context(), _begin) for _ in range(count)]
        with server.without_main():  # the first question starts a pool's process
            self._made = [
                pool.submit(_make, jobs[first : first + CHUNK * count : count])
                for number, pool in enumerate(self._pools)
                for first in range(number, len(jobs), CHUNK * count)
            ]

    def known(self, timeout: float) -> dict[int, Known] | None:
        """Wait until all learners are made; return what is known of them, by peer; None if it takes longer."""
        if wait(self._made, timeout).not_done:
            return None
        return {peer: known for made in self._made for peer, known in made.result().items()}

    def learn(self, peer: int, round_: int, received: Mapping[int, Any] | None, *, evaluate: bool) -> Future[Turn]:
        """Ask a peer to use what it received in the round before, if there was one, and to take a round's steps."""
        return self._pool(peer).submit(_learn, peer, round_, received, evaluate)

    def finish(self, peer: int, received: Mapping[int, Any] | None, ticket: Path, *, evaluate: bool) -> Future[Turn]:
        """Ask a peer to use what it received in the last round, for its result, and to write its ticket."""
        return self._pool(peer).submit(_finish, peer, received, ticket, evaluate)

    def _pool(self, peer: int) -> ProcessPoolExecutor:
        return self._pools[peer % len(self._pools)]

    def end(self) -> None:
        """End the processes; what they were asked for and have not begun is dropped."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in self._pools:
            pool.shutdown()


# --- in a worker ----------------------------------------------------------------------------------------------------

_methods: dict[int, Method[Any, Any]] = {}
_common: list[Common] = []


def _begin() -> None:
    """Leave Ctrl-C to the launcher, and end with it."""
    signal(SIGINT, SIG_IGN)
    pthread_sigmask(SIG_UNBLOCK, {SIGTERM})  # the server blocks it
    threading.Thread(target=_end_with_the_launcher, daemon=True).start()


def _end_with_the_launcher() -> None:
    launcher = multiprocessing.parent_process()
    if launcher is not None:
        launcher.join()
        os._exit(1)


def _make(jobs: Sequence[PeerJob]) -> dict[int, Known]:
    if not _common:
        _common.append(Common(jobs[0].topology.peers, jobs[0].run.experiment))
    known = {}
    for job in jobs:
        method = mask_learner(job, *_common) if job.method is mask_learner else job.method(job)
        _methods[job.peer] = method
        known[job.peer] = Known(
            method.sizes,
            method.ones,
            method.settings,
            method.training_samples,
            method.evaluate_every,
            processor(job.run.device(job.peer).device),
        )
    return known


def _learn(peer: int, round_: int, received: Mapping[int, Any] | None, evaluate: bool) -> Turn:
    accuracies = _use(peer, received, evaluate)
    return Turn(accuracies, *_methods[peer].local_update(round_))


def _finish(peer: int, received: Mapping[int, Any] | None, ticket: Path, evaluate: bool) -> Turn:
    accuracies = _use(peer, received, evaluate)
    message, learned = _methods[peer].result()
    if learned is not None:
        tickets.store(learned, ticket)
    return Turn(accuracies, message)


def _use(peer: int, received: Mapping[int, Any] | None, evaluate: bool) -> Accuracies | None:
    method = _methods[peer]
    if received is not None:
        method.fine_tune(received)
    return method.evaluation()() if evaluate else None
