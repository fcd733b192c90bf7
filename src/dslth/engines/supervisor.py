"""A run as a whole: its folder is prepared, its peers are watched and restarted, its outcome is worked out."""

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dslth import config, keys
from dslth.config import Mode, RunConfig, TransportName
from dslth.engines.base import Engine, Failure, PeerJob, Surroundings, end_on_signals, mask_learner
from dslth.engines.processes import Processes
from dslth.engines.threads import Threads
from dslth.errors import (
    BusyError,
    CheckpointError,
    DslthError,
    JoinError,
    MissingFileError,
    OutputError,
    PeerFailedError,
)
from dslth.runs import events
from dslth.runs.checkpoint import Checkpoints
from dslth.runs.events import Event, Joined, RoundReport
from dslth.runs.folder import Launch, RunFolder
from dslth.runs.summary import Summary, summarise
from dslth.stop import Stop
from dslth.topology import Topology, build
from dslth.transport.faulty import Faults

if TYPE_CHECKING:
    from dslth.peer import Method

__all__ = ["Outcome", "check_resumable", "run_local"]

GRACE_SECONDS = 10.0
"""How long peers that were asked to end may take before they are killed."""
RESTARTS = 5
"""How often a peer is restarted, without a round reported in between, before it is given up."""
BACK_OFF_SECONDS = 0.5
"""How long a restart waits; twice as long each time."""
TICK = 0.1
LAST_SECONDS = 2.0
"""How long remaining reports are taken when all peers have ended."""
COUNTERS = Path("/proc/vmstat")
"""Where Linux counts, among other things, the processes that it ended for lack of memory."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    ``summary`` is None if no peer got as far as a report. ``interrupted``: the run was asked to end before its last
    round. ``failure``: the error that it ends with.
    """

    folder: RunFolder
    summary: Summary | None
    interrupted: bool
    failure: DslthError | None = None

    def measured(self) -> Summary:
        """Return the summary; without one, raises the failure, or DslthError."""
        if self.summary is None:
            raise self.failure or DslthError("the run left no reports")
        return self.summary


def run_local(
    run: RunConfig,
    topology: Topology,
    folder: RunFolder,
    *,
    transport: TransportName = TransportName.ZEROMQ,
    join_timeout: float = 60.0,
    watch: Callable[[Event], None] = lambda event: None,
    restart: bool = False,
    orphans: bool = True,
    faults: Faults | None = None,
    method: "Callable[[PeerJob], Method[Any, Any]]" = mask_learner,
    surround: Callable[[PeerJob, Surroundings], Surroundings] | None = None,
    engine: Callable[[Sequence[PeerJob]], Engine] | None = None,
    launch: Launch | None = None,
) -> Outcome:
    """Run all peers until they are done, or until Ctrl-C: as processes of this machine, or as threads over memory.

    ``faults``, ``method`` and ``surround`` are those of each PeerJob. ``restart``: a peer that dies is restarted and
    resumes from its checkpoint. Without ``orphans`` peers end when this process dies; else they continue. An ``engine``
    runs the peers elsewhere. ``launch`` is kept in the folder for resuming the run; with its ``curve``, keys are made
    there.

    Without a ``network`` section peers listen on free ports of the loopback device, so that runs do not collide.
    Checkpoints are removed once all peers have finished, unless the experiment keeps them.

    The outcome has the error of the first peer that failed, or PeerFailedError for one that was killed; the run folder
    keeps what was measured, with a summary if a peer got as far as its first report. Raises BusyError if another
    process works in the folder, CheckpointError if the folder holds another run.
    """
    make = engine or (Threads if transport == TransportName.MEMORY else partial(Processes, orphans=orphans))
    jobs = [
        PeerJob(
            peer,
            run,
            topology,
            folder,
            join_timeout=join_timeout,
            faults=faults,
            method=method,
            surround=surround,
        )
        for peer in range(topology.peers)
    ]
    stop = Stop()
    with folder.owned():
        with end_on_signals(stop):
            resumed = _begin(run, topology, folder, launch)
            running = make(jobs)
            keeper = _Keeper(running, jobs, watch, restart=restart, resumed=resumed)
            try:
                keeper.keep(stop)
            finally:
                running.end()
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
    """Prepare a folder for a new run, or for resuming the one in it; return whether it is resumed."""
    resumed = bool(folder.manifest())
    if resumed:
        check_resumable(run, topology, folder)
    if launch is not None and launch.curve and not (folder.path / "keys").is_dir():
        keys.make(folder.path / "keys", range(topology.peers))
    folder.begin(run, topology, launch, resumed=resumed)
    return resumed


def check_resumable(run: RunConfig, topology: Topology, folder: RunFolder) -> None:
    """Raise CheckpointError if a folder's run is another one, or has finished and cannot play more rounds."""
    file = folder.path / "topology.yaml"
    before = config.load(file)
    known = config.identity(before, build(before.graph, before.experiment.seed).digest)
    if differ := [key for key, value in config.identity(run, topology.digest).items() if known.get(key) != value]:
        raise CheckpointError(
            f"{folder.path} belongs to another run: other {', '.join(differ[:3])}; "
            "leave out what differs, or choose another folder with --out"
        )
    peers, done = range(topology.peers), before.experiment.rounds
    kept = all(Checkpoints(folder.checkpoints(peer)).files() for peer in peers)
    if run.experiment.rounds > done and not kept and folder.have_finished(peers, done):
        raise CheckpointError(
            f"{folder.path} has finished its {done} rounds and its checkpoints are removed; "
            f"start a new run with --rounds {run.experiment.rounds} (experiment.keep_checkpoints: true keeps them)"
        )


def _forget_checkpoints(run: RunConfig, topology: Topology, folder: RunFolder) -> None:
    """Remove the checkpoints of a run that has finished: no peer needs them any more."""
    if not run.experiment.keep_checkpoints and folder.have_finished(range(topology.peers), run.experiment.rounds):
        for peer in range(topology.peers):
            Checkpoints(folder.checkpoints(peer)).clear()


class _Keeper:
    """Watches over the peers: passes reports on, restarts dead peers with back-off, and knows when to end."""

    def __init__(
        self,
        engine: Engine,
        jobs: Sequence[PeerJob],
        watch: Callable[[Event], None],
        *,
        restart: bool,
        resumed: bool,
    ) -> None:
        self._engine, self._watch, self._restart = engine, watch, restart
        self._experiment, self._folder, self._peers = jobs[0].run.experiment, jobs[0].folder, range(len(jobs))
        self._resumed, self._since = resumed, time.time()
        self._rounds: Counter[int] = Counter()
        self._tries: Counter[int] = Counter()
        self._kills: Counter[int] = Counter()
        self._oom_kills = _oom_kills()
        self._joined: set[int] = set()
        self._given_up: set[int] = set()
        self._waiting: dict[int, float] = {}

    def keep(self, stop: Stop) -> None:
        """Watch until all peers have ended, or some time after they were asked to."""
        asked: float | None = None
        while self._engine.running() or (asked is None and (self._waiting or self._untended())):
            for event in self._engine.events(TICK):
                self._watch(event)
            if asked is None and not stop.is_set():
                self._tend()
            if asked is None and (stop.is_set() or self._hopeless()):
                self._engine.ask_to_end()
                asked = time.monotonic()
            if asked is not None and time.monotonic() - asked > GRACE_SECONDS:
                break
        last = time.monotonic() + LAST_SECONDS
        while time.monotonic() < last and (taken := self._engine.events(0)):
            for event in taken:
                self._watch(event)

    def _untended(self) -> dict[int, Failure]:
        """Return the dead peers that may be restarted, and about which nothing has been decided yet."""
        decided = self._waiting.keys() | self._given_up
        failures = self._engine.failures().items()
        return {peer: failure for peer, failure in failures if peer not in decided and self._may_pass(peer, failure)}

    def _tend(self) -> None:
        """Look after dead peers: restart them when their time has come."""
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
            self._engine.restart(peer)
            self._say("restarted", peer)

    def _may_pass(self, peer: int, failure: Failure) -> bool:
        """Return whether a restart may help a peer; else a person must fix something."""
        if failure.exit_code == BusyError.exit_code:  # its lock may outlive a machine that was lost
            return self._tries[peer] > 0
        return failure.exit_code == PeerFailedError.exit_code

    def _restarts(self, failure: Failure) -> int:
        """Return how often a peer is restarted: less often if it was killed before all have begun."""
        if failure.killed and not all(map(self._has_joined, self._peers)):
            return 0 if _oom_kills() > self._oom_kills else 1
        return RESTARTS

    def _hopeless(self) -> bool:
        """Return whether the others need not continue: a person must fix something, or they would wait in vain."""
        failures = self._engine.failures()
        if not all(self._may_pass(peer, failure) for peer, failure in failures.items()):
            return True
        return any(not self._engine.met or self._waited_for(peer) for peer in failures.keys() - self._waiting.keys())

    def _waited_for(self, peer: int) -> bool:
        """Return whether the others wait for a peer that does not come: at the start, or without a deadline."""
        experiment = self._experiment
        new = not self._resumed and not self._has_joined(peer)
        return experiment.algorithm.exchange and experiment.mode == Mode.SYNC and (new or experiment.deadline == "none")

    def _rounds_of(self, peer: int) -> int:
        """Read from its file how far a peer ever got: a killed peer's last reports may be lost on their way."""
        said = self._folder.said_by(peer)
        return max((event.round + 1 for event in said if isinstance(event, RoundReport)), default=0)

    def _has_joined(self, peer: int) -> bool:
        """Return whether a peer has met its neighbours since the launch, according to its file too."""
        if peer not in self._joined:
            said = self._folder.said_by(peer)
            if any(isinstance(event, Joined) and event.time >= self._since for event in said):
                self._joined.add(peer)
        return peer in self._joined

    def error(self) -> DslthError | None:
        """Make the run's error from those of its peers: the one that caused the others, or that says most."""
        failures = self._engine.failures()
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
        with suppress(OSError), self._folder.happenings.open("a", encoding="utf-8") as file:
            file.write(noticed.model_dump_json() + "\n")
        self._watch(noticed)


def _oom_kills() -> int:
    """Read how many processes the kernel has ended for lack of memory since it started; 0 if it does not say."""
    with suppress(OSError):
        found = re.search(r"^oom_kill (\d+)$", COUNTERS.read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0
