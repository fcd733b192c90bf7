"""Thousands of small rounds: whether memory, file descriptors or threads of the peers grow."""

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil

from dslth.config import RunConfig
from dslth.engines.base import PeerJob, Surroundings
from dslth.engines.supervisor import Outcome, run_local
from dslth.runs.events import Event, RoundReport
from dslth.runs.folder import RunFolder
from dslth.runs.sinks import Call
from dslth.show.tables import Fitted
from dslth.topology import Topology

__all__ = ["PeerGrowth", "figures", "soak", "table"]

SAMPLES = 100
"""How often a peer measures itself in a run."""
WARM_UP = 0.2
"""Share of the rounds after which a peer has all that it needs: buffers, caches, both checkpoints, an evaluation."""
WINDOW = 0.1
"""Share of the rounds whose samples are taken together, after the warm-up and at the end."""
GROWTH = 0.02


class _Sample(NamedTuple):
    round: int
    memory: int
    descriptors: int
    threads: int


@dataclass(frozen=True)
class PeerGrowth:
    """One peer: medians after the warm-up and at the end; memory is resident, in bytes."""

    peer: int
    rounds: int
    memory: tuple[float, float]
    descriptors: tuple[float, float]
    threads: tuple[float, float]

    @property
    def growth(self) -> float:
        """Growth of resident memory, as a share."""
        return self.memory[1] / self.memory[0] - 1

    @property
    def flat(self) -> bool:
        """Whether nothing grew: memory by under 2 %, descriptors and threads not at all."""
        still = self.descriptors[1] <= self.descriptors[0] and self.threads[1] <= self.threads[0]
        return self.growth < GROWTH and still

    def record(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return asdict(self) | {"growth": self.growth, "flat": self.flat}


def soak(run: RunConfig, topology: Topology, folder: RunFolder) -> Outcome:
    """Run all peers of a topology; each records what it holds."""
    every = max(1, run.experiment.rounds // SAMPLES)
    return run_local(run, topology, folder, orphans=False, surround=partial(_watched, every=every))


def _watched(job: PeerJob, surroundings: Surroundings, *, every: int) -> Surroundings:
    """Record a peer's memory, descriptors and threads every ``every`` rounds; see ``PeerJob.surround``."""
    me = psutil.Process()
    file = _samples(job.folder, job.peer)
    file.parent.mkdir(parents=True, exist_ok=True)

    def look(event: Event) -> None:
        if isinstance(event, RoundReport) and event.round % every == 0:
            sample = _Sample(event.round, me.memory_info().rss, me.num_fds(), me.num_threads())
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(sample) + "\n")

    return replace(surroundings, sinks=(*surroundings.sinks, Call(look)))


def _samples(folder: RunFolder, peer: int) -> Path:
    return folder.path / "samples" / f"peer-{peer}.jsonl"


def figures(run: RunConfig, topology: Topology, folder: RunFolder) -> list[PeerGrowth]:
    """Work out from the samples how much each peer held after the warm-up and at the end."""
    rounds = run.experiment.rounds
    found = []
    for peer in range(topology.peers):
        lines = _samples(folder, peer).read_text(encoding="utf-8").splitlines()
        samples = [_Sample(*json.loads(line)) for line in lines]
        warm = [s for s in samples if WARM_UP * rounds <= s.round < (WARM_UP + WINDOW) * rounds]
        late = [s for s in samples if s.round >= (1 - WINDOW) * rounds]

        def both(name: str, warm: list[_Sample] = warm, late: list[_Sample] = late) -> tuple[float, float]:
            return median(getattr(s, name) for s in warm), median(getattr(s, name) for s in late)

        done = samples[-1].round + 1
        found.append(PeerGrowth(peer, done, both("memory"), both("descriptors"), both("threads")))
    return found


def table(found: list[PeerGrowth]) -> Fitted:
    """Show what each peer held, after the warm-up and at the end."""

    def both(pair: tuple[float, float], unit: float = 1, digits: int = 0) -> str:
        return f"{pair[0] / unit:.{digits}f} → {pair[1] / unit:.{digits}f}"

    return Fitted(
        f"held after {100 * WARM_UP:.0f} % of the rounds → at the end",
        {
            "peer": [str(f.peer) for f in found],
            "memory, MB": [both(f.memory, 1e6, 1) for f in found],
            "growth": [f"{100 * f.growth:+.2f} %" for f in found],
            "descriptors": [both(f.descriptors) for f in found],
            "threads": [both(f.threads) for f in found],
        },
    )
