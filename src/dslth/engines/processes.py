"""Peers as processes of this machine, forked from a server that has torch loaded."""

import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import zmq

from dslth.config import DataConfig
from dslth.engines import server
from dslth.engines.base import Failure, PeerJob, Surroundings, run_peer
from dslth.engines.inbox import Inbox, Reporter
from dslth.engines.turns import Turns
from dslth.errors import DataError, PeerFailedError
from dslth.keys import Keys
from dslth.learning import data
from dslth.learning.shared import Shared
from dslth.runs.events import Event
from dslth.stop import Stop

__all__ = ["Processes"]

TURN = 100
"""Reports that are taken at once, at most: Ctrl-C and the clock are checked in between."""


class Processes:
    """A process per peer; see Engine. Without ``orphans`` peers end when this process dies; else they continue.

    Reports come over a socket that only the peers have keys for, made for the run and kept in memory.
    """

    def __init__(self, jobs: Sequence[PeerJob], *, orphans: bool = True) -> None:
        self._jobs, self._orphans = {job.peer: job for job in jobs}, orphans
        self._server = server.context()
        self._data = _shared(jobs[0].run.experiment.data)
        self._turns = Turns(self._server, [job.run.device(job.peer).threads for job in jobs])
        public, secret = zmq.curve_keypair()
        pairs = {peer: zmq.curve_keypair() for peer in self._jobs}
        theirs = {peer: key for peer, (key, _) in pairs.items()}
        self._inbox = Inbox("tcp://127.0.0.1:*", len(pairs), Keys(public, secret, theirs))
        self._reporters = {
            peer: partial(Reporter, self._inbox.address, Keys(*pair, {0: public})) for peer, pair in pairs.items()
        }
        self._failures: dict[int, Failure] = {}
        self._pipes: dict[int, Connection] = {}
        self._processes: dict[int, BaseProcess] = {}
        self._book: dict[int, str] = {}
        self._asking: set[int] = set()
        self.met = False
        try:
            for peer in self._jobs:
                self._start(peer)
        except BaseException:
            self.end()
            raise

    def _start(self, peer: int) -> None:
        job = self._jobs[peer]
        network = job.run.network
        listen = self._book.get(peer) or (network.address(peer) if network else "tcp://127.0.0.1:*")
        here, there = self._server.Pipe()
        process = self._server.Process(
            target=_process,
            args=(replace(job, listen=listen), there, self._reporters[peer], self._orphans, self._data, self._turns),
            name=f"dslth-peer-{peer}",
        )
        try:
            with server.without_main():
                process.start()
        except (EOFError, OSError) as error:  # an EOFError would be taken for the end of input
            raise PeerFailedError(
                f"peer {peer} cannot be started, the process that peers are forked from has ended "
                f"({error.strerror if isinstance(error, OSError) else 'without a word'}); is there memory left for it?"
            ) from None
        finally:
            there.close()
        self._pipes[peer], self._processes[peer] = here, process

    def restart(self, peer: int) -> None:
        """Restart a peer that died, at the address that the others know."""
        self._processes[peer].join()
        del self._failures[peer]
        self._start(peer)

    def events(self, timeout: float) -> list[Event]:
        """Wait for reports, and for messages from peers over their pipes."""
        self._read_pipes()
        taken: list[Event] = []
        while len(taken) < TURN and (event := self._inbox.receive(0 if taken else timeout)):
            taken.append(event)
        return taken

    def _read_pipes(self) -> None:
        for peer, pipe in list(self._pipes.items()):
            try:
                while pipe.poll():
                    said = pipe.recv()
                    if isinstance(said, Failure):
                        self._failures[peer] = said
                        self._write_trace(peer, said)
                    else:
                        self._book[peer] = said
                        self._asking.add(peer)
            except (EOFError, OSError):  # it has ended
                del self._pipes[peer]
        if len(self._book) == len(self._processes):
            addresses = [self._book[peer] for peer in sorted(self._book)]
            for peer in self._asking & self._pipes.keys():
                with suppress(OSError):  # it has just ended; running() tells
                    self._pipes[peer].send(addresses)
            self._asking.clear()
            self.met = True

    def _write_trace(self, peer: int, failure: Failure) -> None:
        if failure.trace:
            self._jobs[peer].folder.reports(peer).with_suffix(".log").write_text(failure.trace, encoding="utf-8")

    def running(self) -> set[int]:
        """Return the peers whose process is alive."""
        self._read_pipes()
        alive = {peer for peer, process in self._processes.items() if process.is_alive()}
        for peer in self._processes.keys() - alive - self._failures.keys():
            self._turns.give_back(peer)
            code = self._processes[peer].exitcode or 0
            if code:
                how = f"killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
                self._failures[peer] = Failure(PeerFailedError.exit_code, how, killed=code == -signal.SIGKILL)
        return alive

    def ask_to_end(self) -> None:
        """Send SIGTERM to all peers."""
        for process in self._processes.values():
            if process.is_alive():
                process.terminate()

    def end(self) -> None:
        """Kill the peers that are left, and wait for their processes to end."""
        for peer, process in self._processes.items():
            if process.is_alive():
                process.kill()
                self._failures.setdefault(peer, Failure(PeerFailedError.exit_code, "did not end when asked to"))
            process.join()
        self.running()
        for pipe in self._pipes.values():
            pipe.close()
        self._inbox.close()

    def failures(self) -> dict[int, Failure]:
        """Return the peers that failed, and why."""
        return self._failures


def _shared(settings: DataConfig) -> Shared | None:
    """Read the data set for all peers; None if each must read its own, or will say what is wrong with it."""
    if settings.each_its_own:
        return None
    with suppress(OSError, DataError):
        return Shared(data.load(settings))
    return None


def _process(
    job: PeerJob, pipe: Connection, report: Callable[[], Reporter], orphans: bool, shared: Shared | None, turns: Turns
) -> None:
    """Run the process of one peer."""
    if shared:
        data.keep(job.run.experiment.data, shared.dataset())
        del shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which asks with SIGTERM
    stop = Stop()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the server blocks it

    def meet(address: str) -> Sequence[str]:
        pipe.send(address)
        wait([pipe, stop.fileno()])
        if stop.is_set():
            raise SystemExit(0)
        addresses: Sequence[str] = pipe.recv()
        if not orphans:
            threading.Thread(target=end_with_the_launcher, daemon=True).start()
        return addresses

    def end_with_the_launcher() -> None:
        wait([pipe])  # the launcher sends nothing more: readable means that it has ended
        stop.set()

    try:
        with closing(report()) as reporter:
            run_peer(job, Surroundings(stop, meet, (reporter,), turn=partial(turns.turn, job.peer)))
    except Exception as error:
        pipe.send(Failure.of(error))
        raise SystemExit(1) from None
