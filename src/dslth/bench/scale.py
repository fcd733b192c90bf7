"""``dslth bench scale``: what a peer costs as runs grow.

Handwritten digits, a random graph in which each peer has four neighbours, and as many samples for each peer, so that
the work of one does not depend on how many there are. What is measured is read from outside, but for a peer's memory.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from dslth import config, topology
from dslth.bench import results
from dslth.config import EngineName, RunConfig
from dslth.engines.base import PeerJob, Surroundings, preflight
from dslth.engines.batched import Batched
from dslth.engines.supervisor import run_local
from dslth.runs.events import Event, RoundReport
from dslth.runs.folder import RunFolder
from dslth.runs.sinks import Call
from dslth.show.tables import Fitted
from dslth.stop import Stop

__all__ = ["SIZES", "Row", "as_json", "measure", "plot", "run_of", "table", "write"]

SIZES: Mapping[EngineName, Sequence[int]] = {
    EngineName.LOCAL: (10, 25, 50, 100, 200),
    EngineName.BATCHED: (100, 1000, 5000),
}
"""The engines that are measured, and with how many peers: a process each, over sockets; or all in a few processes."""
DEGREE = 4
SAMPLES = 128


@dataclass(frozen=True)
class Row:
    """One run. What is said to be a peer's is the whole run's, divided by the number of peers.

    The first round ends when all peers have reported it, counted from the launch. Milliseconds are a peer's in a round
    between the first and the last: by the clock, and of processor time in all processes (``main_ms``: in this one
    alone). Memory is the proportional set size of all processes, each half way, plus what it once held more. Message
    bytes are those of a directed edge in a round, hellos and byes included.
    """

    engine: EngineName
    peers: int
    rounds: int
    first_round_seconds: float
    round_seconds: float
    wall_ms: float
    processor_ms: float
    main_ms: float
    memory_mb: float
    message_bytes: float


class _Spent(NamedTuple):
    """Seconds by the clock, and of processor time in all processes and in this one."""

    clock: float
    processor: float
    main: float

    def __sub__(self, earlier: "_Spent") -> "_Spent":
        return _Spent(*(now - then for now, then in zip(self, earlier, strict=True)))


class _Meter:
    """Follows a run's reports, and reads what its processes have spent.

    Peers are rounds apart, so their rounds are counted together: from one a peer to one a peer less than all.
    ``memory`` is that of this process and its children, if ``nested`` also of theirs.
    """

    def __init__(self, peers: int, rounds: int, *, nested: bool) -> None:
        self._peers, self._rounds, self._nested = peers, rounds, nested
        self._reports = self._firsts = 0
        self._looking = 0.0
        self.first_round = 0.0
        self.begin = self.end = _Spent(0.0, 0.0, 0.0)
        self.memory = 0

    def take(self, event: Event) -> None:
        """Take a report."""
        if not isinstance(event, RoundReport):
            return
        self._reports += 1
        self._firsts += event.round == 0
        if event.round == 0 and self._firsts == self._peers:
            self.first_round = time.monotonic()
        if self._reports == self._peers:
            self.begin = self._read()
        if self._reports == self._peers * (self._rounds // 2):
            before = time.process_time()
            self.memory = sum(map(_memory, _all_processes(self._nested)))
            self._looking = time.process_time() - before
        if self._reports == self._peers * (self._rounds - 1):
            self.end = self._read()

    def _read(self) -> _Spent:
        main = time.process_time() - self._looking
        return _Spent(time.monotonic(), main + sum(map(_processor, _all_processes()[1:])), main)


def _all_processes(nested: bool = True) -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=nested)]


def _watched(job: PeerJob, surroundings: Surroundings) -> Surroundings:
    """Let a peer write down what it takes of memory half way; see ``PeerJob.surround``.

    From outside it would take so long to ask a hundred of them that some had ended.
    """

    def look(event: Event) -> None:
        if isinstance(event, RoundReport) and event.round == job.run.experiment.rounds // 2:
            _memory_file(job.folder, job.peer).write_text(str(_memory(psutil.Process())))

    return replace(surroundings, sinks=(*surroundings.sinks, Call(look)))


def _memory_file(folder: RunFolder, peer: int) -> Path:
    return folder.path / "peers" / f"memory-{peer}"


def _processor(process: psutil.Process) -> float:
    """Return the processor seconds of a process, and of its children that have ended; 0 if it has ended itself."""
    with suppress(psutil.Error):
        return sum(process.cpu_times()[:4])
    return 0.0


def _memory(process: psutil.Process) -> int:
    """Return the bytes that a process takes of the machine's memory, at its peak; 0 once it has ended."""
    with suppress(psutil.Error, OSError, StopIteration):
        now = process.memory_full_info()
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        return int(now.pss + max(0, 1024 * peak - now.rss))
    return 0


def run_of(peers: int, rounds: int) -> RunConfig:
    """Return the run that is measured."""
    partition = {"kind": "drawn", "classes_per_peer": 4, "samples": SAMPLES}
    graph = {"kind": "random-regular", "peers": peers, "degree": DEGREE}
    return config.load("ring", {"graph": graph, "experiment": {"rounds": rounds, "data": {"partition": partition}}})


def measure(sizes: Sequence[tuple[EngineName, int]], rounds: int, folder: Path, stop: Stop) -> Iterator[Row]:
    """Run each engine with each number of peers, in the given order, until ``stop``, or an interruption, is set.

    ``rounds`` is at least 3. Raises DslthError where a run cannot be done here.
    """
    for engine, peers in sizes:
        run = run_of(peers, rounds)
        graph = topology.build(run.graph, run.experiment.seed)
        batched = engine == EngineName.BATCHED
        preflight(run, graph, virtual=batched)
        if stop.is_set():
            return
        meter, began = _Meter(peers, rounds, nested=batched), time.monotonic()
        place = RunFolder(folder / f"{engine}-{peers}")
        outcome = run_local(
            run,
            graph,
            place,
            orphans=False,
            watch=meter.take,
            engine=Batched if batched else None,
            surround=None if batched else _watched,
        )
        if outcome.interrupted:
            return
        summary = outcome.measured()
        if outcome.failure:
            raise outcome.failure
        spent = meter.end - meter.begin
        own = 0 if batched else sum(int(_memory_file(place, peer).read_text()) for peer in range(peers))
        each = 1000 / (peers * (rounds - 2))
        yield Row(
            engine,
            peers,
            rounds,
            meter.first_round - began,
            spent.clock / (rounds - 2),
            each * spent.clock,
            each * spent.processor,
            each * spent.main,
            (meter.memory + own) / peers / 1e6,
            summary.message_bytes_sent / (summary.directed_edges * rounds),
        )


def table(rows: Sequence[Row]) -> Fitted:
    """Show what was measured."""
    from dslth.bench.speed import machine  # with torch, which is heavy: not before memory was measured

    return Fitted(
        "digits, four neighbours each",
        {
            "peers": [f"{row.peers:,}" for row in rows],
            "engine": [row.engine for row in rows],
            "first round": [f"{row.first_round_seconds:.1f} s" for row in rows],
            "a round": [f"{row.round_seconds:.2f} s" for row in rows],
            "clock": [f"{row.wall_ms:.1f}" for row in rows],
            "processor": [f"{row.processor_ms:.1f}" for row in rows],
            "main": [f"{row.main_ms:.1f}" for row in rows],
            "MB a peer": [f"{row.memory_mb:.1f}" for row in rows],
            "bytes": [f"{row.message_bytes:,.0f}" for row in rows],
        },
        spare=("main",),
        note="Clock, processor: milliseconds a peer and round, of all processes; main: of it in the "
        f"launching one. Bytes: messages of a directed edge in a round. {machine()}",
    )


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Return everything, as ``--json`` prints it."""
    from dslth.bench.speed import machine

    return {"machine": machine(), "degree": DEGREE, "samples": SAMPLES, "rows": [*map(asdict, rows)]}


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write ``scale.json`` and ``scale.csv``; raises OutputError."""
    results.write(folder, "scale", as_json(rows), [*map(asdict, rows)])


def plot(rows: Sequence[Row], folder: Path) -> bool:
    """Draw ``scale.png``, time and memory of a peer by the number of peers; False, and no plot, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    picture = Figure(figsize=(9, 4), layout="constrained")
    sides = ((("processor_ms", "-"), ("wall_ms", "--")), (("memory_mb", "-"),))
    for number, (title, lines) in enumerate(zip(("ms a peer and round", "MB a peer"), sides, strict=True)):
        axes = picture.add_subplot(1, 2, number + 1, xscale="log", xlabel="peers", title=title)
        for colour, engine in enumerate(dict.fromkeys(row.engine for row in rows)):
            of_it = [row for row in rows if row.engine == engine]
            for name, style in lines:
                label = f"{engine}, {name.partition('_')[0].replace('wall', 'clock')}"
                values = [getattr(row, name) for row in of_it]
                axes.plot([row.peers for row in of_it], values, style, color=f"C{colour}", marker=".", label=label)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    picture.savefig(folder / "scale.png", dpi=150)
    return True
