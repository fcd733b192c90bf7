"""All peers of a run on this machine: forked from a warm server, or as threads; watched, collected, ended."""

import multiprocessing
import queue
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import zmq

from dslth import data, events, limits, partition
from dslth.config import NetworkConfig, RunConfig
from dslth.errors import DslthError, MissingFileError, PeerFailedError
from dslth.events import Event, RoundReport
from dslth.inbox import Inbox, Reporter
from dslth.keys import Keys
from dslth.report import summarise
from dslth.runfolder import RunFolder
from dslth.seeds import Stream
from dslth.topology import Topology

if TYPE_CHECKING:
    from dslth.learner import Learner
    from dslth.sinks import Sink
    from dslth.transport import Transport
    from dslth.transport.faulty import Faults

__all__ = ["Failure", "Outcome", "Settings", "Workers", "end_on_signals", "preflight", "run_local", "run_one"]

GRACE_SECONDS = 10.0
"""How long peers that were asked to end may take before they are killed."""
RESTARTS = 5
"""How often a peer is started again, without a round reported in between, before it is given up."""
BACK_OFF_SECONDS = 0.5
"""How long a peer that died stays away; twice as long each time."""
TICK = 0.1
LAST_SECONDS = 2.0
"""How long reports are taken that are there when all peers have ended."""
TURN = 100
"""Reports that are taken at once at most: whatever comes, Ctrl-C and the clock are seen between."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    ``summary`` is empty where no peer got as far as a report. ``interrupted``: it was asked to end before its last
    round. ``failure``: the error that it ends with.
    """

    folder: RunFolder
    summary: dict[str, Any]
    interrupted: bool
    failure: DslthError | None = None


@dataclass(frozen=True)
class Failure:
    """Why a peer ended early, in a form that crosses a process boundary."""

    exit_code: int
    text: str
    trace: str


def preflight(
    run: RunConfig, topology: Topology, progress: data.Progress | None = None, peer: int | None = None
) -> str:
    """Check, before anything starts, what would fail in every peer: limits, ids, addresses, data, partition.

    ``peer`` is the one that is to run here, None for all. Return a note for the person, or an empty text.
    """
    limits.provide(topology, peer)
    run.check_peers(topology.peers)
    for other in range(topology.peers):
        (run.network or NetworkConfig()).address(other)
    dataset = data.load(run.experiment.data, progress)
    shares = partition.split(
        run.experiment.data,
        topology.peers,
        run.experiment.seed,
        dataset.train_labels,
        dataset.test_labels,
        dataset.classes,
    )
    return "; ".join(filter(None, (dataset.note, shares.note)))


@contextmanager
def end_on_signals(stop: threading.Event) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM set ``stop`` in place of cutting through what is going on."""

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = [(number, signal.signal(number, ask)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


# --- one peer -------------------------------------------------------------------------------------------------------


def run_one(
    peer: int,
    run: RunConfig,
    topology: Topology,
    folder: RunFolder,
    stop: threading.Event,
    *,
    listen: str,
    meet: Callable[[str], Sequence[str]],
    memory: Any = None,
    reports: "Callable[[], Sink] | None" = None,
    watch: Callable[[Event], None] | None = None,
    join_timeout: float = 60.0,
    advertise: str = "",
    faults: "Faults | None" = None,
    make_learner: "type[Learner] | None" = None,
) -> events.Finished:
    """Run one peer of a run in this thread, from listening to its ticket; it goes on from a checkpoint in the folder.

    ``meet`` is told the address that the peer listens on and gives those of all peers. ``memory`` is the MemoryNetwork
    of a run in one process; without one the peer talks ZeroMQ. ``reports`` makes a sink in the peer's own process.
    ``faults`` befall what it sends. ``make_learner`` is for benchmarks that learn otherwise.
    """
    from dslth import keys, sinks, wire
    from dslth.checkpoint import Checkpoints
    from dslth.learner import Learner  # torch is heavy: only who learns loads it
    from dslth.neighbourhood import Place
    from dslth.peer import Peer
    from dslth.transport.faulty import FaultyTransport
    from dslth.transport.memory import MemoryTransport
    from dslth.transport.zeromq import ZeroMqTransport

    learner = (make_learner or Learner)(peer, topology.peers, run.experiment, run.device(peer))
    largest = wire.max_message(learner.sizes)
    if memory is None:
        mine = keys.choose(peer, run.network, topology.neighbours(peer), listen, folder.path / "keys")
        transport: Transport = ZeroMqTransport(largest, mine, neighbours=len(topology.neighbours(peer)))
    else:
        transport = MemoryTransport(memory, peer)
    if faults is not None:
        transport = FaultyTransport(transport, faults, Stream(run.experiment.seed, "faults", peer))
    checkpoints = Checkpoints(folder.checkpoints(peer))
    outputs: list[sinks.Sink] = []
    try:
        addresses = meet(transport.listen(listen))
        outputs.append(sinks.JsonLines(folder.reports(peer), append=True))
        if reports is not None:
            outputs.append(reports())
        if watch is not None:
            outputs.append(sinks.Call(watch))
        place = Place(peer, run, topology, addresses, join_timeout, advertise)
        return Peer(place, learner, transport, outputs, stop, checkpoints).run(folder.ticket(peer))
    finally:
        transport.close()
        for output in outputs:
            output.close()


# --- all peers ------------------------------------------------------------------------------------------------------


class Workers(Protocol):
    """The peers of a run, as processes or threads. ``met``: all know each other's addresses."""

    met: bool

    def events(self, timeout: float) -> list[Event]:
        """Wait up to ``timeout`` seconds for reports."""

    def running(self) -> set[int]:
        """Give the peers that are there."""

    def restart(self, peer: int) -> None:
        """Start a peer again that died."""

    def ask_to_end(self) -> None:
        """Have all peers end in good order."""

    def end(self) -> None:
        """End who is left."""

    def failures(self) -> dict[int, Failure]:
        """Give the peers that failed, and why."""


def run_local(
    run: RunConfig,
    topology: Topology,
    folder: RunFolder,
    *,
    transport: str = "zeromq",
    join_timeout: float = 60.0,
    watch: Callable[[Event], None] = lambda event: None,
    restart: bool = False,
    orphans: bool = True,
    be: Callable[..., events.Finished] = run_one,
    make_workers: "Callable[[Settings], Workers] | None" = None,
) -> Outcome:
    """Run all peers on this machine until they are done, or until Ctrl-C.

    ``be`` is what each peer does; benchmarks put their own in place of ``run_one``. ``restart``: a peer whose process
    dies is started again and goes on from its checkpoint. Without ``orphans`` peers end when this process dies; else
    they learn on. ``make_workers`` is for engines that have the peers run elsewhere.

    Without a ``network`` section peers listen on free ports of the loopback device, so that runs do not collide.

    The outcome has the error of the first peer that failed, or PeerFailedError for one that was killed; the run folder
    keeps what was measured, summary included, wherever a peer got as far as its first report.
    """
    if not folder.manifest():  # else it is resumed
        folder.begin(run, topology)
    stop = threading.Event()
    with end_on_signals(stop):
        settings = Settings(run, topology, folder, join_timeout, be, orphans)
        make = make_workers or (_Processes if transport == "zeromq" else _Threads)
        workers: Workers = make(settings)
        keeper = _Keeper(workers, folder, watch, restart=restart and transport == "zeromq")
        try:
            asked: float | None = None
            while workers.running() or (keeper.waiting and asked is None):
                for event in workers.events(TICK):
                    keeper.take(event)
                if asked is None and not stop.is_set():
                    keeper.tend()
                if asked is None and (stop.is_set() or _hopeless(workers, keeper.waiting)):
                    workers.ask_to_end()
                    asked = time.monotonic()
                if asked is not None and time.monotonic() - asked > GRACE_SECONDS:
                    break
            last = time.monotonic() + LAST_SECONDS
            while time.monotonic() < last and (taken := workers.events(0)):
                for event in taken:
                    keeper.take(event)
        finally:
            workers.end()
    failures = workers.failures()
    summary: dict[str, Any] = {}
    with suppress(MissingFileError):  # where no peer got as far as a report
        summary = summarise(folder)
        folder.write_summary(summary)
    failure = _error(failures) if failures and not stop.is_set() else None
    return Outcome(folder, summary, interrupted=stop.is_set(), failure=failure)


class _Keeper:
    """Passes reports on, and starts peers again that died, with back-off."""

    def __init__(self, workers: Workers, folder: RunFolder, watch: Callable[[Event], None], *, restart: bool) -> None:
        self._workers, self._folder, self._watch, self._restart = workers, folder, watch, restart
        self._rounds: Counter[int] = Counter()
        self._tries: Counter[int] = Counter()
        self.waiting: dict[int, float] = {}

    def take(self, event: Event) -> None:
        """Pass a report on."""
        if isinstance(event, RoundReport):
            self._rounds[event.peer] = event.round + 1
            self._tries[event.peer] = 0
        self._watch(event)

    def tend(self) -> None:
        """Look after those who died: start them again when their time has come."""
        for peer, failure in list(self._workers.failures().items()):
            if not self._restart or peer in self.waiting or failure.exit_code != PeerFailedError.exit_code:
                continue
            if self._tries[peer] == RESTARTS:
                self._say("gave-up", peer, failure.text)
                self._tries[peer] += 1
            elif self._tries[peer] < RESTARTS:
                self._say("died", peer, failure.text)
                self.waiting[peer] = time.monotonic() + BACK_OFF_SECONDS * 2 ** self._tries[peer]
                self._tries[peer] += 1
        for peer in [peer for peer, due in self.waiting.items() if time.monotonic() >= due]:
            del self.waiting[peer]
            self._workers.restart(peer)
            self._say("restarted", peer)

    def _say(self, what: events.Happening, peer: int, detail: str = "") -> None:
        noticed = events.Noticed(peer=peer, time=time.time(), round=self._rounds[peer], what=what, detail=detail)
        with suppress(OSError), self._folder.happenings.open("a", encoding="utf-8") as file:
            file.write(noticed.model_dump_json() + "\n")
        self._watch(noticed)


def _hopeless(workers: Workers, waiting: Mapping[int, float]) -> bool:
    """Tell whether a peer failed for a reason that a person must mend, so that the others need not go on."""
    failures = workers.failures()
    mendable = any(failure.exit_code != PeerFailedError.exit_code for failure in failures.values())
    return mendable or bool(failures.keys() - waiting.keys() and not workers.met)


def _error(failures: dict[int, Failure]) -> DslthError:
    """Make the error that a run ends with out of those of its peers: the first that says most."""
    peer, failure = min(failures.items(), key=lambda item: (item[1].exit_code == PeerFailedError.exit_code, item[0]))
    kinds = {kind.exit_code: kind for kind in DslthError.__subclasses__()}
    kind = kinds.get(failure.exit_code, PeerFailedError)
    others = f" ({len(failures) - 1} more peers failed)" if len(failures) > 1 else ""
    return kind(f"peer {peer}: {failure.text}{others}" if kind is PeerFailedError else failure.text)


def _failure(error: BaseException) -> Failure:
    if isinstance(error, DslthError):
        return Failure(error.exit_code, str(error), "")
    return Failure(PeerFailedError.exit_code, f"{type(error).__name__}: {error}", traceback.format_exc())


@dataclass(frozen=True)
class Settings:
    """What all peers of a local run are started with."""

    run: RunConfig
    topology: Topology
    folder: RunFolder
    join_timeout: float
    be: Callable[..., events.Finished]
    orphans: bool


class _Processes:
    """A process a peer, forked from a server that has torch loaded.

    Reports come over a socket that only they have keys for, made for the run and kept in memory.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server = multiprocessing.get_context("forkserver")
        self._server.set_forkserver_preload(["dslth.learner", "dslth.peer", "dslth.transport.zeromq"])
        resource_tracker.ensure_running()  # by itself, because starting it lets signals through
        # inherited: nothing cuts into the server's imports, and it outlives the peers, to tell how they end
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        forkserver.ensure_running()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # what came meanwhile is not lost
        public, secret = zmq.curve_keypair()
        pairs = {peer: zmq.curve_keypair() for peer in range(settings.topology.peers)}
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
            for peer in range(settings.topology.peers):
                self._start(peer)
        except BaseException:
            self.end()
            raise

    def _start(self, peer: int) -> None:
        network = self._settings.run.network
        listen = self._book.get(peer) or (network.address(peer) if network else "tcp://127.0.0.1:*")
        here, there = self._server.Pipe()
        process = self._server.Process(
            target=_process,
            args=(peer, self._settings, listen, there, self._reporters[peer]),
            name=f"dslth-peer-{peer}",
        )
        try:
            process.start()
        except (EOFError, OSError) as error:  # an EOFError would pass for the end of what a person types
            raise PeerFailedError(
                f"peer {peer} cannot be started, the process that peers are forked from has ended "
                f"({error.strerror if isinstance(error, OSError) else 'without a word'}); is there memory left for it?"
            ) from None
        finally:
            there.close()
        self._pipes[peer], self._processes[peer] = here, process

    def restart(self, peer: int) -> None:
        """Start a peer again that died, at the address that the others know."""
        self._processes[peer].join()
        del self._failures[peer]
        self._start(peer)

    def events(self, timeout: float) -> list[Event]:
        """Wait for reports and for what peers say over their pipes."""
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
            self._settings.folder.reports(peer).with_suffix(".log").write_text(failure.trace, encoding="utf-8")

    def running(self) -> set[int]:
        """Give the peers whose process is alive."""
        self._read_pipes()
        alive = {peer for peer, process in self._processes.items() if process.is_alive()}
        for peer in self._processes.keys() - alive - self._failures.keys():
            code = self._processes[peer].exitcode or 0
            if code:
                how = f"killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
                self._failures[peer] = Failure(PeerFailedError.exit_code, how, "")
        return alive

    def ask_to_end(self) -> None:
        """Send SIGTERM to all peers."""
        for process in self._processes.values():
            if process.is_alive():
                process.terminate()

    def end(self) -> None:
        """Kill who is left, and reap."""
        for process in self._processes.values():
            if process.is_alive():
                process.kill()
            process.join()
        self.running()
        for pipe in self._pipes.values():
            pipe.close()
        self._inbox.close()

    def failures(self) -> dict[int, Failure]:
        """Give the peers that failed, and why."""
        return self._failures


def _process(peer: int, settings: Settings, listen: str, pipe: Connection, reports: "Callable[[], Sink]") -> None:
    """Be the process of one peer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which asks with SIGTERM
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the server blocks it

    def meet(address: str) -> Sequence[str]:
        pipe.send(address)
        while not wait([pipe], TICK):
            if stop.is_set():
                raise SystemExit(0)
        addresses: Sequence[str] = pipe.recv()
        if not settings.orphans:
            threading.Thread(target=end_with_the_launcher, daemon=True).start()
        return addresses

    def end_with_the_launcher() -> None:
        wait([pipe])  # the launcher says nothing more: that there is something to read is its end
        stop.set()

    try:
        settings.be(
            peer,
            settings.run,
            settings.topology,
            settings.folder,
            stop,
            listen=listen,
            meet=meet,
            reports=reports,
            join_timeout=settings.join_timeout,
        )
    except Exception as error:
        pipe.send(_failure(error))
        raise SystemExit(1) from None


class _Threads:
    """A thread a peer, all in this process, exchanging through memory."""

    met = True

    def __init__(self, settings: Settings) -> None:
        from dslth.transport.memory import MemoryNetwork

        self._stop = threading.Event()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._failures: dict[int, Failure] = {}
        network = MemoryNetwork()
        topology = settings.topology
        addresses = [f"memory://{peer}" for peer in range(topology.peers)]

        def run_thread(peer: int) -> None:
            try:
                settings.be(
                    peer,
                    settings.run,
                    topology,
                    settings.folder,
                    self._stop,
                    listen=addresses[peer],
                    meet=lambda address: addresses,
                    memory=network,
                    watch=self._events.put,
                    join_timeout=settings.join_timeout,
                )
            except Exception as error:
                self._failures[peer] = _failure(error)

        self._threads = {
            peer: threading.Thread(target=run_thread, args=(peer,), name=f"dslth-peer-{peer}", daemon=True)
            for peer in range(topology.peers)
        }
        try:
            for thread in self._threads.values():
                thread.start()
        except RuntimeError as error:
            self._stop.set()
            raise PeerFailedError(f"{thread.name} cannot be started: {error}; is there memory left for it?") from None

    def events(self, timeout: float) -> list[Event]:
        """Wait for reports."""
        taken: list[Event] = []
        try:
            while True:
                taken.append(self._events.get(timeout=0.0 if taken else timeout))
        except queue.Empty:
            return taken

    def running(self) -> set[int]:
        """Give the peers whose thread is alive."""
        return {peer for peer, thread in self._threads.items() if thread.is_alive()}

    def restart(self, peer: int) -> None:
        """Threads do not die."""

    def ask_to_end(self) -> None:
        """Set the flag that all peers look at."""
        self._stop.set()

    def end(self) -> None:
        """Wait for the threads; none can be killed."""
        self._stop.set()
        for thread in self._threads.values():
            thread.join(GRACE_SECONDS)

    def failures(self) -> dict[int, Failure]:
        """Give the peers that failed, and why."""
        return self._failures
