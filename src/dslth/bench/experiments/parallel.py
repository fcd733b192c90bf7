"""Work side by side: each piece in a process of its own, on its share of the cores, as many as memory allows."""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from signal import SIG_IGN, SIG_UNBLOCK, SIGINT, SIGTERM, pthread_sigmask, signal
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from dslth.engines import server
from dslth.errors import DslthError, PeerFailedError
from dslth.stop import Stop

__all__ = ["Work", "at_once", "results"]

TICK = 0.2
"""Seconds in which Ctrl-C is noticed."""

Work = Callable[[Path], Any]
"""Takes a folder of its own, which is removed afterwards; returns None if it was interrupted."""


class _Running(NamedTuple):
    number: int
    place: int
    process: BaseProcess


def at_once(pieces: int, cores: int, memory: int, available: int) -> int:
    """Return how many pieces of work go side by side, each of which takes ``memory`` bytes of those ``available``."""
    return max(1, min(pieces, cores, available // max(1, memory)))


def results(works: Sequence[Work], width: int, stop: Stop) -> Generator[tuple[int, Any]]:
    """Do all pieces, ``width`` of them at once; yield the number and the result of each as it is finished.

    Ends early when ``stop`` is set: what is running then is asked to end, and its result is None. Raises what a piece
    raised, or PeerFailedError if its process died; the others are ended.
    """
    context, cores = server.context(), sorted(os.sched_getaffinity(0))
    running: dict[Connection, _Running] = {}
    waiting, free = list(enumerate(works)), list(range(width))
    asked = False
    try:
        while running or (waiting and not stop.is_set()):
            while waiting and free and not stop.is_set():
                (number, work), place = waiting.pop(0), free.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_do, args=(work, cores[place::width], theirs))
                with server.without_main():
                    process.start()
                theirs.close()
                running[ours] = _Running(number, place, process)
            if stop.is_set() and not asked:
                asked = True
                for one in running.values():
                    one.process.terminate()
            for connection in wait(list(running), TICK):
                assert isinstance(connection, Connection)  # noqa: S101
                done = running.pop(connection)
                free.append(done.place)
                yield done.number, _result(connection, done.process, stop)
    finally:
        for one in running.values():
            one.process.terminate()
        for connection, one in running.items():
            connection.close()
            one.process.join()


def _result(connection: Connection, process: BaseProcess, stop: Stop) -> Any:
    result: Any = None
    with connection, suppress(EOFError):
        result = connection.recv()
        if isinstance(result, Exception):
            raise result
    process.join()
    if result is None and not stop.is_set() and process.exitcode:
        raise PeerFailedError(f"the process of a run died ({process.exitcode}); the same command goes on")
    return result


def _do(work: Work, cores: Sequence[int], connection: Connection) -> None:
    """Do a piece of work in this process, and send its result."""
    signal(SIGINT, SIG_IGN)  # whoever started this process is interrupted as well, and says when to end
    pthread_sigmask(SIG_UNBLOCK, {SIGINT, SIGTERM})
    os.sched_setaffinity(0, cores)
    result: Any
    with TemporaryDirectory(prefix="dslth-experiment-") as folder:
        try:
            result = work(Path(folder))
        except DslthError as error:
            result = error
    connection.send(result)
