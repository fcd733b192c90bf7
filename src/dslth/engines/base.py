"""What a peer is given, how one peer is run, and the interface of an engine, which runs all of them."""

import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, Self

from dslth import keys, limits
from dslth.config import Inputs, NetworkConfig, RunConfig
from dslth.engines.turns import at_once
from dslth.errors import DataError, DslthError, PeerFailedError
from dslth.learning import data, footprint, partition
from dslth.runs.checkpoint import Checkpoints
from dslth.runs.events import Event, Finished
from dslth.runs.folder import RunFolder
from dslth.runs.sinks import JsonLines, Sink
from dslth.seeds import Stream
from dslth.stop import Stop
from dslth.topology import Topology
from dslth.transport import Transport
from dslth.transport.faulty import Faults, FaultyTransport
from dslth.transport.memory import MemoryNetwork, MemoryTransport

if TYPE_CHECKING:
    from dslth.learner import Common, Learner
    from dslth.peer import Method

__all__ = [
    "Engine",
    "Failure",
    "PeerJob",
    "Surroundings",
    "end_on_signals",
    "predicted_memory",
    "preflight",
    "run_peer",
]


def mask_learner(job: "PeerJob", common: "Common | None" = None) -> "Learner":
    """Return the method of the paper, which learns a mask; ``common`` is what it shares with others of its thread."""
    from dslth.learner import Learner  # torch is heavy: loaded only when needed

    return Learner(job.peer, job.topology.peers, job.run.experiment, job.run.device(job.peer), common)


@dataclass(frozen=True)
class PeerJob:
    """What a peer is given; all of it can go to another process, or to another machine.

    ``listen`` is the address to listen on, ``advertise`` the peer's own address if its neighbours know another.
    ``faults`` happen to what it sends. ``forget``: its checkpoints are removed when it has played all rounds and left.
    ``method`` makes its Method. ``surround`` changes its surroundings, in its own process, before it begins:
    benchmarks use it to watch a peer, or to put relays between peers.
    """

    peer: int
    run: RunConfig
    topology: Topology
    folder: RunFolder
    listen: str = ""
    advertise: str = ""
    join_timeout: float = 60.0
    faults: Faults | None = None
    forget: bool = False
    method: "Callable[[PeerJob], Method[Any, Any]]" = mask_learner
    surround: "Callable[[PeerJob, Surroundings], Surroundings] | None" = None


@dataclass(frozen=True)
class Surroundings:
    """What a peer finds in its process; none of it can go to another.

    ``stop`` asks it to end. ``meet`` takes the address that the peer listens on and returns those of all peers; before
    it is called, nothing in the folder is touched. ``sinks`` take its reports, besides its file in the folder; their
    maker closes them. ``network`` is that of a run in one process; without one the peer uses ZeroMQ. ``turn`` lets it
    compute when others do not, if they share its cores.
    """

    stop: Stop
    meet: Callable[[str], Sequence[str]]
    sinks: tuple[Sink, ...] = ()
    network: MemoryNetwork | None = None
    turn: Callable[[], AbstractContextManager[None]] = nullcontext


def run_peer(job: PeerJob, surroundings: Surroundings) -> Finished:
    """Run one peer in this thread, from listening to its ticket; it resumes from a checkpoint in the folder, if any.

    The peer's files in the folder are locked until it ends; raises BusyError if another process is that peer.
    """
    from dslth import wire
    from dslth.exchange.protocol import Place
    from dslth.peer import Peer
    from dslth.transport.zeromq import ZeroMqTransport

    around = surroundings if job.surround is None else job.surround(job, surroundings)
    peer, run, folder = job.peer, job.run, job.folder
    neighbours = job.topology.neighbours(peer)
    with folder.owned_by(peer):
        method = job.method(job)
        largest = wire.max_message(method.coding.largest)
        if around.network is None:
            mine = keys.choose(peer, run.network, neighbours, job.listen, folder.path / "keys")
            transport: Transport = ZeroMqTransport(largest, mine, neighbours=len(neighbours), stop=around.stop)
        else:
            transport = MemoryTransport(around.network, peer)
        if job.faults is not None:
            transport = FaultyTransport(transport, job.faults, Stream(run.experiment.seed, "faults", peer))
        checkpoints = Checkpoints(folder.checkpoints(peer))
        file: JsonLines | None = None
        try:
            addresses = around.meet(transport.listen(job.listen))
            file = JsonLines(folder.reports(peer), append=True)
            place = Place(peer, run, job.topology, addresses, job.join_timeout, job.advertise)
            learning = Peer(place, method, transport, (file, *around.sinks), around.stop, checkpoints, around.turn)
            finished = learning.run(folder.ticket(peer))
        finally:
            transport.close()
            if file is not None:
                file.close()
        if job.forget and finished.rounds_completed >= run.experiment.rounds and not around.stop.is_set():
            checkpoints.clear()
        return finished


# --- engines --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """Why a peer ended early, in a form that crosses a process boundary."""

    exit_code: int
    text: str
    trace: str = ""
    killed: bool = False
    """Whether its process was killed by signal 9, as the kernel does when memory runs out."""

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Return an error as a Failure; if it is not a DslthError, the traceback is kept."""
        if isinstance(error, DslthError):
            return cls(error.exit_code, str(error))
        return cls(PeerFailedError.exit_code, f"{type(error).__name__}: {error}", traceback.format_exc())


class Engine(Protocol):
    """What runs the peers of a run, from their jobs; making an engine starts all of them.

    ``met``: all know each other's addresses.
    """

    met: bool

    def events(self, timeout: float) -> list[Event]:
        """Wait up to ``timeout`` seconds for reports."""

    def running(self) -> set[int]:
        """Return the peers that are running."""

    def restart(self, peer: int) -> None:
        """Restart a peer that failed."""

    def ask_to_end(self) -> None:
        """Ask all peers to end properly."""

    def end(self) -> None:
        """End the peers that are left, and close everything."""

    def failures(self) -> dict[int, Failure]:
        """Return the peers that failed, and why."""


# --- before and around a run ----------------------------------------------------------------------------------------


def preflight(
    run: RunConfig,
    topology: Topology,
    progress: data.Progress | None = None,
    peer: int | None = None,
    *,
    virtual: bool = False,
    here: bool = True,
) -> str:
    """Check, before anything starts, what would fail in every peer: limits, ids, addresses, data, partition, memory.

    ``peer`` is the one that will run here, None for all; ``virtual`` ones have neither a process nor an address each.
    Memory is counted where all are processes ``here``: a peer alone often has a limit that was set for it on purpose.
    Return a note for the user, or an empty text.
    """
    limits.provide(None if virtual else topology, peer)
    run.check_peers(topology.peers)
    if not virtual:
        for other in range(topology.peers):
            (run.network or NetworkConfig()).address(other)
    divided = _Divided(run, topology, progress, peer)
    counted = here and not virtual and peer is None
    memory = limits.check_memory(divided.memory, topology.peers) if counted else ""
    real = run.has_links and not virtual
    links = "links play no part in real time, only in that of --engine batched" if real else ""
    return "; ".join(filter(None, (*divided.notes, links, memory)))


def predicted_memory(run: RunConfig, topology: Topology) -> int:
    """Return how many bytes of memory a run will take whose peers are all processes of this machine."""
    return _Divided(run, topology).memory


class _Divided:
    """What the peers of a run, or one of them, will have of its data: read and looked at before anything starts."""

    def __init__(
        self, run: RunConfig, topology: Topology, progress: data.Progress | None = None, peer: int | None = None
    ) -> None:
        self._run, self._topology = run, topology
        settings, self.notes = run.experiment.data, list[str]()
        everybody = range(topology.peers) if peer is None else [peer]
        first: Inputs | None = None
        self._samples: list[tuple[int, int]] = []
        for one in everybody if settings.each_its_own else everybody[:1]:
            mine = settings.of(one)
            dataset = data.load(mine, progress)
            data.keep(mine, dataset)  # for what runs here next
            shares = partition.divide(run.experiment, topology.peers, dataset)
            self.notes += [note for note in (dataset.note, shares.note) if note and note not in self.notes]
            self._samples += [(len(train), len(train) + len(test) + len(shares.common)) for train, test in shares.pairs]
            first = first or dataset.inputs
            if str(dataset.inputs) != str(first):
                raise DataError(
                    f"{mine.path}: {dataset.inputs}; those of peer {everybody[0]}: {first}; one network must fit the "
                    "data of all peers: give data.shape and data.classes"
                )
        assert first is not None  # noqa: S101  (a graph has peers)
        self._inputs = first

    @property
    def memory(self) -> int:
        """Bytes that the run will take if all peers are processes of this machine."""
        experiment = self._run.experiment
        needed, steps = footprint.SERVER, []
        for one, (train, samples) in enumerate(self._samples):
            device = self._run.device(one)
            batch = min(device.batch or experiment.algorithm.batch, train)
            neighbours = len(self._topology.neighbours(one)) if experiment.algorithm.exchange else 0
            needed += footprint.of_peer(experiment, self._inputs, neighbours, samples)
            steps.append(footprint.of_step(experiment, self._inputs, batch))
        learning = at_once([self._run.device(one).threads for one in range(self._topology.peers)])
        return needed + sum(sorted(steps)[-learning:])


@contextmanager
def end_on_signals(stop: Stop) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM set ``stop`` instead of interrupting the program; only its main thread can do that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = [(number, signal.signal(number, ask)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
