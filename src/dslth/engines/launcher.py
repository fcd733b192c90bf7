"""All peers of a run on this machine: forked from a warm server, or as threads; watched, collected, ended."""

import multiprocessing
import queue
import re
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import zmq

from dslth import config, limits
from dslth import keys as key_files
from dslth.config import NetworkConfig, RunConfig
from dslth.engines.inbox import Inbox, Reporter
from dslth.errors import (
    BusyError,
    CheckpointError,
    DslthError,
    JoinError,
    MissingFileError,
    OutputError,
    PeerFailedError,
)
from dslth.keys import Keys
from dslth.learning import data, partition
from dslth.run import events
from dslth.run.checkpoint import Checkpoints
from dslth.run.events import Event, Joined, RoundReport
from dslth.run.folder import Launch, RunFolder
from dslth.run.summary import Summary, summarise
from dslth.seeds import Stream
from dslth.topology import Topology, build

if TYPE_CHECKING:
    from dslth.learner import Learner
    from dslth.run.sinks import Sink
    from dslth.transport import Transport
    from dslth.transport.faulty import Faults

__all__ = [
    "Failure",
    "Outcome",
    "Settings",
    "Workers",
    "check_resumable",
    "end_on_signals",
    "preflight",
    "run_local",
    "run_one",
]

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
COUNTERS = Path("/proc/vmstat")
"""Where Linux counts, among much else, the processes that it ended for lack of memory."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    ``summary`` is None where no peer got as far as a report. ``interrupted``: it was asked to end before its last
    round. ``failure``: the error that it ends with.
    """

    folder: RunFolder
    summary: Summary | None
    interrupted: bool
    failure: DslthError | None = None

    def measured(self) -> Summary:
        """Return the summary; raises the failure, or DslthError, where there is none."""
        if self.summary is None:
            raise self.failure or DslthError("the run left no reports")
        return self.summary


@dataclass(frozen=True)
class Failure:
    """Why a peer ended early, in a form that crosses a process boundary."""

    exit_code: int
    text: str
    trace: str
    killed: bool = False
    """Whether its process was killed by signal 9, as the kernel does where memory runs out."""


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
    forget: bool = False,
    make_learner: "type[Learner] | None" = None,
) -> events.Finished:
    """Run one peer of a run in this thread, from listening to its ticket; it goes on from a checkpoint in the folder.

    The peer's files in the folder are its own until it ends; raises BusyError where another process is that peer.
    ``meet`` is told the address that the peer listens on and gives those of all peers; nothing in the folder has been
    touched before. ``memory`` is the MemoryNetwork of a run in one process; without one the peer talks ZeroMQ.
    ``reports`` makes a sink in the peer's own process. ``faults`` befall what it sends. ``forget``: its checkpoints are
    removed when it has played all rounds and left. ``make_learner`` is for benchmarks that learn otherwise.
    """
    from dslth import wire
    from dslth.exchange.protocol import Place
    from dslth.learner import Learner  # torch is heavy: only who learns loads it
    from dslth.peer import Peer
    from dslth.run import sinks
    from dslth.transport.faulty import FaultyTransport
    from dslth.transport.memory import MemoryTransport
    from dslth.transport.zeromq import ZeroMqTransport

    with folder.owned_by(peer):
        learner = (make_learner or Learner)(peer, topology.peers, run.experiment, run.device(peer))
        largest = wire.max_message(wire.max_payload(learner.sizes))
        if memory is None:
            mine = key_files.choose(peer, run.network, topology.neighbours(peer), listen, folder.path / "keys")
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
            finished = Peer(place, learner, transport, outputs, stop, checkpoints).run(folder.ticket(peer))
        finally:
            transport.close()
            for output in outputs:
                output.close()
        if forget and finished.rounds_completed >= run.experiment.rounds and not stop.is_set():
            checkpoints.clear()
        return finished


# --- all peers ------------------------------------------------------------------------------------------------------


class Workers(Protocol):
    """The peers of a run, as processes or threads. ``met``: all know each other's addresses."""

    met: bool

    def events(self, timeout: float) -> list[Event]:
        """Wait up to ``timeout`` seconds for reports."""

    def running(self) -> set[int]:
        """Return the peers that are there."""

    def restart(self, peer: int) -> None:
        """Start a peer again that died."""

    def ask_to_end(self) -> None:
        """Have all peers end in good order."""

    def end(self) -> None:
        """End who is left."""

    def failures(self) -> dict[int, Failure]:
        """Return the peers that failed, and why."""


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
    launch: Launch | None = None,
) -> Outcome:
    """Run all peers on this machine until they are done, or until Ctrl-C.

    ``be`` is what each peer does; benchmarks put their own in place of ``run_one``. ``restart``: a peer whose process
    dies is started again and goes on from its checkpoint. Without ``orphans`` peers end when this process dies; else
    they learn on. ``make_workers`` is for engines that have the peers run elsewhere. ``launch`` is kept in the folder
    for whoever goes on with the run; with its ``curve``, keys are made there.

    Without a ``network`` section peers listen on free ports of the loopback device, so that runs do not collide.
    Checkpoints are removed once all peers have finished, unless the experiment has them kept.

    The outcome has the error of the first peer that failed, or PeerFailedError for one that was killed; the run folder
    keeps what was measured, summary included, wherever a peer got as far as its first report. Raises BusyError where
    another process is at work in the folder, CheckpointError where what is to be gone on with is another run's.
    """
    with folder.owned():
        resumed = _begin(run, topology, folder, launch)
        stop = threading.Event()
        with end_on_signals(stop):
            settings = Settings(run, topology, folder, join_timeout, be, orphans)
            make = make_workers or (_Processes if transport == "zeromq" else _Threads)
            workers: Workers = make(settings)
            keeper = _Keeper(workers, settings, watch, restart=restart and transport == "zeromq", resumed=resumed)
            try:
                keeper.keep(stop)
            finally:
                workers.end()
        failure = None if stop.is_set() else keeper.error()
        _forget_checkpoints(run, topology, folder)
        summary = None
        try:
            summary = summarise(folder)
            folder.write_summary(summary)
        except MissingFileError:  # no peer got as far as a report
            pass
        except OutputError as error:
            failure = failure or error
    return Outcome(folder, summary, interrupted=stop.is_set(), failure=failure)


def _begin(run: RunConfig, topology: Topology, folder: RunFolder, launch: Launch | None) -> bool:
    """Make a folder ready for a run, or to go on with the one that is there; True where it goes on."""
    resumed = bool(folder.manifest())
    if resumed:
        check_resumable(run, topology, folder)
    if launch is not None and launch.curve and not (folder.path / "keys").is_dir():
        key_files.make(folder.path / "keys", range(topology.peers))
    folder.begin(run, topology, launch, anew=not resumed)
    return resumed


def check_resumable(run: RunConfig, topology: Topology, folder: RunFolder) -> None:
    """Raise CheckpointError where a folder's run is another one, or has finished and cannot go on to more rounds."""
    file = folder.path / "topology.yaml"
    before = config.load(file)
    known = config.identity(before, build(before.graph, before.experiment.seed).digest)
    if differ := [key for key, value in config.identity(run, topology.digest).items() if known.get(key) != value]:
        raise CheckpointError(
            f"{folder.path} belongs to another run: other {', '.join(differ[:3])}; "
            "leave out what makes it another, or choose another folder with --out"
        )
    peers, done = range(topology.peers), before.experiment.rounds
    kept = all(Checkpoints(folder.checkpoints(peer)).files() for peer in peers)
    if run.experiment.rounds > done and not kept and folder.have_finished(peers, done):
        raise CheckpointError(
            f"{folder.path} has finished its {done} rounds and its checkpoints are removed; "
            f"begin anew with --rounds {run.experiment.rounds} (experiment.keep_checkpoints: true keeps them)"
        )


def _forget_checkpoints(run: RunConfig, topology: Topology, folder: RunFolder) -> None:
    """Remove the checkpoints of a run that has finished: no peer needs any of them any more."""
    if not run.experiment.keep_checkpoints and folder.have_finished(range(topology.peers), run.experiment.rounds):
        for peer in range(topology.peers):
            Checkpoints(folder.checkpoints(peer)).clear()


class _Keeper:
    """Watches over the peers: passes reports on, starts peers again that died, with back-off, and knows when to end."""

    def __init__(
        self,
        workers: Workers,
        settings: "Settings",
        watch: Callable[[Event], None],
        *,
        restart: bool,
        resumed: bool,
    ) -> None:
        self._workers, self._settings, self._watch, self._restart = workers, settings, watch, restart
        self._resumed, self._since = resumed, time.time()
        self._rounds: Counter[int] = Counter()
        self._tries: Counter[int] = Counter()
        self._kills: Counter[int] = Counter()
        self._oom_kills = _oom_kills()
        self._joined: set[int] = set()
        self._given_up: set[int] = set()
        self._waiting: dict[int, float] = {}

    def keep(self, stop: threading.Event) -> None:
        """Watch until all peers have ended, at the latest a while after they were asked to."""
        asked: float | None = None
        while self._workers.running() or (asked is None and (self._waiting or self._untended())):
            for event in self._workers.events(TICK):
                self._watch(event)
            if asked is None and not stop.is_set():
                self._tend()
            if asked is None and (stop.is_set() or self._hopeless()):
                self._workers.ask_to_end()
                asked = time.monotonic()
            if asked is not None and time.monotonic() - asked > GRACE_SECONDS:
                break
        last = time.monotonic() + LAST_SECONDS
        while time.monotonic() < last and (taken := self._workers.events(0)):
            for event in taken:
                self._watch(event)

    def _untended(self) -> dict[int, Failure]:
        """Return the peers that have died and may be started again, about whom nothing has been decided yet."""
        decided = self._waiting.keys() | self._given_up
        failures = self._workers.failures().items()
        return {peer: failure for peer, failure in failures if peer not in decided and self._may_pass(peer, failure)}

    def _tend(self) -> None:
        """Look after those who died: start them again when their time has come."""
        for peer, failure in self._untended().items():
            self._kills[peer] += failure.killed
            if (rounds := self._rounds_of(peer)) > self._rounds[peer]:
                self._rounds[peer], self._tries[peer] = rounds, 0  # it got further than before
            if self._restart and self._tries[peer] < self._restarts(failure):
                self._say("died", peer, failure.text)
                self._waiting[peer] = time.monotonic() + BACK_OFF_SECONDS * 2 ** self._tries[peer]
                self._tries[peer] += 1
            else:
                self._given_up.add(peer)
                if self._restart:
                    self._say("gave-up", peer, failure.text)
        for peer in [peer for peer, due in self._waiting.items() if time.monotonic() >= due]:
            del self._waiting[peer]
            self._workers.restart(peer)
            self._say("restarted", peer)

    def _may_pass(self, peer: int, failure: Failure) -> bool:
        """Return whether a peer may fare better when it is started again; else a person must mend something."""
        if failure.exit_code == BusyError.exit_code:  # its lock may outlive a machine that was lost
            return self._tries[peer] > 0
        return failure.exit_code == PeerFailedError.exit_code

    def _restarts(self, failure: Failure) -> int:
        """Return how often a peer is started again: seldom where it was killed before all have begun."""
        if failure.killed and not all(map(self._has_joined, range(self._settings.topology.peers))):
            return 0 if _oom_kills() > self._oom_kills else 1
        return RESTARTS

    def _hopeless(self) -> bool:
        """Return whether the others need not go on: a person must mend something, or they would wait in vain."""
        failures = self._workers.failures()
        if not all(self._may_pass(peer, failure) for peer, failure in failures.items()):
            return True
        return any(not self._workers.met or self._waited_for(peer) for peer in failures.keys() - self._waiting.keys())

    def _waited_for(self, peer: int) -> bool:
        """Return whether the others wait for a peer that does not come: the first time, or without a deadline."""
        experiment = self._settings.run.experiment
        new = not self._resumed and not self._has_joined(peer)
        return experiment.algorithm.exchange and experiment.mode == "sync" and (new or experiment.deadline == "none")

    def _rounds_of(self, peer: int) -> int:
        """Read how far a peer ever was from its file: who is killed takes reports along that are under way."""
        said = self._settings.folder.said_by(peer)
        return max((event.round + 1 for event in said if isinstance(event, RoundReport)), default=0)

    def _has_joined(self, peer: int) -> bool:
        """Return whether a peer ever met its neighbours since the launch, by its file as well."""
        if peer not in self._joined:
            said = self._settings.folder.said_by(peer)
            if any(isinstance(event, Joined) and event.time >= self._since for event in said):
                self._joined.add(peer)
        return peer in self._joined

    def error(self) -> DslthError | None:
        """Make the error that the run ends with out of those of its peers: what caused the others, or says most."""
        failures = self._workers.failures()
        if not failures:
            return None
        peer, failure = min(
            failures.items(), key=lambda item: (item[1].exit_code == PeerFailedError.exit_code, item[0])
        )
        killed = {peer for peer, count in self._kills.items() if count} | {
            peer for peer, failure in failures.items() if failure.killed
        }
        if killed and (failure.killed or failure.exit_code == JoinError.exit_code):
            return PeerFailedError(self._of_the_killed(sorted(killed)))
        kinds = {kind.exit_code: kind for kind in DslthError.__subclasses__()}
        kind = kinds.get(failure.exit_code, PeerFailedError)
        others = f" ({len(failures) - 1} more peers failed)" if len(failures) > 1 else ""
        return kind(f"peer {peer}: {failure.text}{others}" if kind is PeerFailedError else failure.text)

    def _of_the_killed(self, peers: Sequence[int]) -> str:
        who = f"peer {peers[0]}" if len(peers) == 1 else f"peers {', '.join(map(str, peers[:20]))}"
        more = f" and {len(peers) - 20} more" if len(peers) > 20 else ""
        ended = _oom_kills() - self._oom_kills
        why = f"the kernel ended {ended} for lack of memory" if ended > 0 else "often that is a lack of memory"
        return f"{who}{more}: killed by signal 9 (SIGKILL); {why}: run fewer peers, smaller batches or a smaller model"

    def _say(self, what: events.Happening, peer: int, detail: str = "") -> None:
        noticed = events.Noticed(peer=peer, time=time.time(), round=self._rounds[peer], what=what, detail=detail)
        with suppress(OSError), self._settings.folder.happenings.open("a", encoding="utf-8") as file:
            file.write(noticed.model_dump_json() + "\n")
        self._watch(noticed)


def _oom_kills() -> int:
    """Read how many processes the kernel has ended for lack of memory since it started; 0 where it does not say."""
    with suppress(OSError):
        found = re.search(r"^oom_kill (\d+)$", COUNTERS.read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


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
        """Return the peers whose process is alive."""
        self._read_pipes()
        alive = {peer for peer, process in self._processes.items() if process.is_alive()}
        for peer in self._processes.keys() - alive - self._failures.keys():
            code = self._processes[peer].exitcode or 0
            if code:
                how = f"killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
                self._failures[peer] = Failure(PeerFailedError.exit_code, how, "", killed=code == -signal.SIGKILL)
        return alive

    def ask_to_end(self) -> None:
        """Send SIGTERM to all peers."""
        for process in self._processes.values():
            if process.is_alive():
                process.terminate()

    def end(self) -> None:
        """Kill who is left, and reap."""
        for peer, process in self._processes.items():
            if process.is_alive():
                process.kill()
                self._failures.setdefault(peer, Failure(PeerFailedError.exit_code, "did not end when asked to", ""))
            process.join()
        self.running()
        for pipe in self._pipes.values():
            pipe.close()
        self._inbox.close()

    def failures(self) -> dict[int, Failure]:
        """Return the peers that failed, and why."""
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
        """Return the peers whose thread is alive."""
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
        """Return the peers that failed, and why."""
        return self._failures
