"""The cells of an experiment: what each measures, and how one is done."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

from dslth import config, topology
from dslth.bench.cells import Cells, told
from dslth.bench.comm import ROWS, Row, measure
from dslth.bench.experiments.parallel import at_once, results
from dslth.bench.experiments.plan import Plan, Runs, Variant
from dslth.bench.experiments.subsets import DRAWN, SubsetSums, approximate, bits_per_candidate, log_deciles
from dslth.bench.speed import machine
from dslth.config import RunConfig
from dslth.engines.base import mask_learner, predicted_memory, preflight
from dslth.engines.batched import Batched
from dslth.engines.supervisor import run_local
from dslth.errors import ConfigError
from dslth.limits import available_memory
from dslth.runs import tickets
from dslth.runs.folder import RunFolder
from dslth.runs.summary import summarise
from dslth.show.words import percent
from dslth.stop import Stop
from dslth.topology import Topology

__all__ = ["Cell", "Done", "cells_of", "do"]

MASKS = Row("masks", "MCE-PL", mask_learner)
SHARES = ("weights_kept", "filters_left")
Figures = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Cell:
    """One piece of work: its variant and seed; ``settings`` say all that its figures depend on.

    ``work`` takes a run folder and returns the figures, None if it was interrupted. ``memory``: bytes that it may take.
    """

    variant: str
    seed: int
    settings: Mapping[str, Any]
    work: Callable[[Path], Figures | None]
    memory: int = 1 << 29

    @cached_property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.variant.replace(' ', '-')}-seed{self.seed}"


@dataclass(frozen=True)
class Done:
    """A finished cell, as its file has it: its figures, and how they were measured."""

    cell: Cell
    record: Mapping[str, Any]

    @property
    def figures(self) -> Figures:
        """What was measured."""
        figures: Figures = self.record["figures"]
        return figures


def cells_of(plan: Plan, changes: Mapping[str, Any]) -> list[Cell]:
    """List an experiment's cells, seed by seed, and check all settings and data before any is done.

    ``changes`` are keys of a topology file that win over all others. Raises DslthError.
    """
    cells: list[Cell] = []
    for seed in plan.seeds:
        if plan.sums:
            cells += [_sum(plan.sums, drawn, mask, seed) for drawn in DRAWN for mask in plan.sums.candidates]
        if plan.runs:
            cells += [_run(plan.runs, name, variant, seed, changes) for name, variant in plan.runs.variants.items()]
    return cells


def do(cells: Sequence[Cell], store: Cells, stop: Stop, say: Callable[[str], None]) -> list[Done]:
    """Do the cells that are not finished; return all that are then, in the given order.

    As many go side by side as there are cores, and memory for the largest. Ends early if ``stop`` is set. Raises
    DslthError where a run fails.
    """
    records = {cell: store.finished(cell.name, cell.settings) for cell in cells}
    left = [cell for cell, record in records.items() if record is None]
    if left and len(left) < len(cells):
        say(f"{len(cells) - len(left)} of {len(cells)} cells were finished before")
    began = time.monotonic()
    memory = max((cell.memory for cell in left), default=0)
    width = at_once(len(left), len(os.sched_getaffinity(0)), memory, available_memory())
    number = 0
    with closing(results([cell.work for cell in left], width, stop)) as finished:
        for which, figures in finished:
            if figures is None:  # interrupted
                continue
            cell, number = left[which], number + 1
            records[cell] = store.finish(cell.name, cell.settings, figures, machine())
            rest = (time.monotonic() - began) / number * (len(left) - number)
            result = f": {percent(figures['accuracy_personal'])}" if "accuracy_personal" in figures else ""
            say(f"{cell.variant}, seed {cell.seed}{result}; {number} of {len(left)} cells, {_duration(rest)} left")
    return [Done(cell, record) for cell, record in records.items() if record is not None]


def _duration(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {seconds:.0f} s"


# --- sums of subsets ------------------------------------------------------------------------------------------------


def _sum(settings: SubsetSums, drawn: str, mask: str, seed: int) -> Cell:
    numbers = settings.candidates[mask]
    told = {"agents": settings.agents, "weights": settings.weights, "candidates": numbers, "drawn": drawn, "mask": mask}
    variant = f"{drawn} {'ternary' if '-' in mask else 'binary'}"
    return Cell(variant, seed, told | {"seed": seed}, partial(_sum_errors, settings, drawn, mask, seed))


def _sum_errors(settings: SubsetSums, drawn: str, mask: str, seed: int, folder: Path) -> Figures:
    """Measure deciles of the error by number of candidates, and the slope of the median, of all agents and of each."""
    numbers = settings.candidates[mask]
    errors = [approximate(settings, drawn, mask, n, seed) for n in numbers]
    middle = [[10 ** log_deciles(of_agent)[4] for of_agent in each] for each in errors]
    by_agent = [bits_per_candidate(numbers, medians) for medians in zip(*middle, strict=True)]
    deciles = [log_deciles(each) for each in errors]
    return {
        "drawn": drawn,
        "mask": mask,
        "candidates": numbers,
        "log10_error_deciles": deciles,
        "bits_per_candidate": bits_per_candidate(numbers, [10 ** each[4] for each in deciles]),
        "bits_per_candidate_by_agent": by_agent,
    }


# --- runs -----------------------------------------------------------------------------------------------------------


def _run(runs: Runs, name: str, variant: Variant, seed: int, changes: Mapping[str, Any]) -> Cell:
    known = {MASKS.name: MASKS, **ROWS}
    if variant.row not in known:
        raise ConfigError(f"variant {name}: there is no row {variant.row!r}; there are {', '.join(known)}")
    row = known[variant.row]
    keys = config.merge(config.merge(runs.settings, variant.settings), changes)
    settings = config.load(runs.topology, config.merge(keys, {"experiment": {"seed": seed}}))
    settings = row.settings(settings).model_copy(update={"network": settings.network})
    graph = topology.build(settings.graph, seed)
    preflight(settings, graph, virtual=True)
    known_by = told(settings, graph) | {"row": row.name}
    return Cell(name, seed, known_by, partial(_learn, row, settings, graph), predicted_memory(settings, graph))


def _learn(row: Row, settings: RunConfig, graph: Topology, folder: Path) -> Figures | None:
    """Do one run in virtual time; its masks are those of a run over sockets."""
    place = RunFolder(folder)
    outcome = run_local(settings, graph, place, engine=Batched, method=row.method, join_timeout=1e9)
    if outcome.interrupted:
        return None
    if outcome.failure:
        raise outcome.failure
    result, summary = measure(row, place), summarise(place)
    kept = [_kept(place, peer.id) for peer in summary.peers]
    peers = [
        {
            "id": peer.id,
            "kind": settings.device(peer.id).kind,
            "accuracy_personal": peer.accuracy_personal,
            "accuracy_global": peer.accuracy_global,
            "missing": peer.missing,
            "rounds": peer.rounds_played,
            **share,
        }
        for peer, share in zip(summary.peers, kept, strict=True)
    ]
    return {
        "accuracy_personal": result.accuracy_personal,
        "accuracy_worst": result.accuracy_worst,
        "accuracy_global": summary.accuracy_global,
        "message_bytes": result.message_bytes,
        "payload_bits_per_weight": summary.payload_bits_per_weight_per_round,
        "virtual_seconds": summary.seconds,
        **{key: fmean(share[key] for share in kept) if kept[0] else None for key in SHARES},
        "curve": result.curve,
        "peers": peers,
    }


def _kept(folder: RunFolder, peer: int) -> dict[str, float]:
    """Return the shares of weights and of filters that a peer's ticket keeps; nothing if it learned no mask."""
    if not folder.ticket(peer).exists():
        return {}
    ticket = tickets.load(folder.ticket(peer))
    layers = [layer.reshape(shape[0], -1) for layer, shape in zip(ticket.mask.arrays(), ticket.shapes, strict=True)]
    filters = sum(len(layer) for layer in layers)
    return {
        "weights_kept": sum(int(layer.sum()) for layer in layers) / sum(layer.size for layer in layers),
        "filters_left": sum(int(layer.any(1).sum()) for layer in layers) / filters,
    }
