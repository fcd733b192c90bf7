"""The cells of a study: one run each, with its row, values, seed and split; and in which order they are done.

Every run is one of the batched engine: no message misses a deadline however busy the machine is, so that accuracies and
message bytes depend on the settings alone.
"""

import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dslth import config, topology
from dslth.bench.cells import Cells, told
from dslth.bench.comm import Recorded, Row, chosen, held_out, measure
from dslth.bench.speed import machine
from dslth.bench.study.plan import Plan
from dslth.bench.tuning import Unfinished, Values, effort, search, words
from dslth.config import RunConfig
from dslth.engines.base import mask_learner
from dslth.engines.batched import Batched
from dslth.engines.supervisor import run_local
from dslth.runs.folder import RunFolder
from dslth.show.words import amount, percent
from dslth.stop import Stop
from dslth.topology import Topology

__all__ = ["Cell", "Limits", "Result", "Standing", "Study"]

FIGURES = ("accuracy_personal", "accuracy_worst", "accuracy_other", "accuracies", "evaluated")
BYTES = ("message_bytes", "payload_bytes", "missing", "curve")


@dataclass(frozen=True)
class Cell:
    """One run. ``evaluated``: when accuracy is taken, as it was best in tuning; None while that is open."""

    part: str
    row: Row
    values: Values
    run: RunConfig
    graph: Topology
    evaluated: str | None = None

    @property
    def name(self) -> str:
        """Its file, without the ending."""
        experiment = self.run.experiment
        split = "validation" if experiment.data.validation else "test"
        return "/".join((self.part, self.row.name, "-".join((split, words(self.values), f"seed{experiment.seed}"))))

    @property
    def settings(self) -> dict[str, Any]:
        """All that its figures depend on."""
        run = told(self.row.tuned(self.values).settings(self.run), self.graph)
        return {"row": self.row.name, "values": dict(self.values), "evaluated": self.evaluated, "run": run}


@dataclass(frozen=True)
class Result:
    """A finished cell, as its file has it."""

    cell: Cell
    record: Mapping[str, Any]

    @property
    def values(self) -> Values:
        """The values that it ran with."""
        return self.cell.values

    @property
    def accuracy_personal(self) -> float:
        """The mean over peers at the end."""
        return float(self.figures["accuracy_personal"])

    @property
    def figures(self) -> Mapping[str, Any]:
        """What was measured."""
        figures: Mapping[str, Any] = self.record["figures"]
        return figures


@dataclass(frozen=True)
class Standing:
    """How far a row of a part is: ``tried`` of ``effort`` tuning runs, and the results of its seeds, in order.

    ``effort`` may grow until all are done: a rate that is best at an end of its grid is tried further.
    """

    part: str
    row: str
    tried: int
    effort: int
    seeds: tuple[int, ...]
    results: tuple[Result, ...]

    @property
    def done(self) -> int:
        """Number of its finished cells."""
        return self.tried + len(self.results)

    @property
    def all(self) -> int:
        """Number of its cells."""
        return self.effort + len(self.seeds)


@dataclass(frozen=True)
class Limits:
    """When a session ends: when it is asked to, after so many cells, or when so many minutes have passed."""

    stop: Stop
    cells: int | None = None
    minutes: float | None = None

    def reached(self, done: int, seconds: float) -> bool:
        """Return whether no further cell is to be begun."""
        too_late = self.minutes is not None and seconds >= 60 * self.minutes
        return self.stop.is_set() or done == self.cells or too_late


class Study:
    """A plan with its runs and its finished cells. ``changes`` are keys of a topology file that win over all others.

    Raises DslthError for settings that do not hold.
    """

    def __init__(self, plan: Plan, store: Cells, changes: Mapping[str, Any]) -> None:
        self.plan, self._store, self._changes = plan, store, changes
        self.rows = chosen(",".join(plan.rows))
        self.runs = {name: self._run(name, plan.tuning_seed) for name in plan.parts}

    def _run(self, part: str, seed: int) -> tuple[RunConfig, Topology]:
        settings = self.plan.parts[part].settings
        keys = config.merge(config.merge(settings, self._changes), {"experiment": {"seed": seed}})
        run = config.load(self.plan.parts[part].topology, keys)
        return run, topology.build(run.graph, seed)

    # --- which cells there are --------------------------------------------------------------------------------------

    def _trial(self, part: str, row: Row, values: Values) -> Cell:
        """Return a tuning run: shorter, on held-out samples, evaluated at its end."""
        run, graph = self.runs[part]
        rounds = self.plan.parts[part].tuning_rounds
        experiment = run.experiment.model_copy(update={"rounds": rounds, "evaluate_every": rounds})
        return Cell(
            part, row, values, held_out(run.model_copy(update={"experiment": experiment}), self.plan.validation), graph
        )

    def _play(self, part: str, row: Row, get: Callable[[Cell], Result]) -> list[Result]:
        """Get a row's cells one after the other: the trials of its values, then its seeds with the best."""
        first = row.values(self.runs[part][0])
        best = search(first, row.grid, lambda values: get(self._trial(part, row, values)))
        cells = []
        for seed in self.plan.rows[row.name]:
            run, graph = self._run(part, seed)
            cells.append(Cell(part, row, best.values, run, graph, best.figures["evaluated"]))
        return [get(cell) for cell in cells]

    def standings(self) -> list[Standing]:
        """Return how far each row of each part is, from the files alone."""
        return [self._standing(part, row) for part in self.plan.parts for row in self.rows]

    def _standing(self, part: str, row: Row) -> Standing:
        found: list[Result] = []
        missing: list[Cell] = []

        def get(cell: Cell) -> Result:
            if (record := self._store.finished(cell.name, cell.settings)) is None:
                missing.append(cell)
                raise Unfinished
            found.append(Result(cell, record))
            return found[-1]

        with suppress(Unfinished):
            self._play(part, row, get)
        results = tuple(one for one in found if not one.cell.run.experiment.data.validation)
        tried = needed = len(found) - len(results)
        if missing and missing[0].run.experiment.data.validation:  # how many more, depends on what these come out as
            needed = max(effort(row.values(self.runs[part][0]), row.grid), tried + 1)
        return Standing(part, row.name, tried, needed, self.plan.rows[row.name], results)

    # --- doing them -------------------------------------------------------------------------------------------------

    def run(self, only: Sequence[str], folder: Path, limits: Limits, say: Callable[[str], None]) -> int:
        """Do the cells that are not finished, of the parts and rows in ``only``; return how many are left of these.

        ``folder`` is the run folder of the cell that is being done; it is removed afterwards. Raises DslthError where a
        run fails.
        """
        parts, names = self.plan.chosen(only)
        wanted = [(part, row) for part in self.plan.parts for row in self.rows if part in parts and row.name in names]
        session = _Session(limits, lambda: [self._standing(part, row) for part, row in wanted], self)
        for part, row in wanted:
            try:
                self._play(part, row, partial(self._get, session, folder, say))
            except Unfinished:
                break
        return session.left

    def _get(self, session: "_Session", folder: Path, say: Callable[[str], None], cell: Cell) -> Result:
        if (record := self._store.finished(cell.name, cell.settings)) is None:
            session.go_on()
            shutil.rmtree(folder, ignore_errors=True)  # of a session that was killed
            began = time.monotonic()
            try:
                figures = _play(cell, RunFolder(folder), session.stop)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            figures["seconds"] = round(time.monotonic() - began, 1)
            record = self._store.finish(cell.name, cell.settings, figures, machine())
            session.count(cell, figures["seconds"])
            say(
                f"{cell.name}: {percent(figures['accuracy_personal'])}, {amount(figures['message_bytes'])}, "
                f"{figures['seconds']:.0f} s; {session.told}"
            )
        return Result(cell, record)


class _Session:
    """What one call has done and has left, and how long that will take."""

    def __init__(self, limits: Limits, standings: Callable[[], Sequence[Standing]], study: Study) -> None:
        self._limits, self._began, self._done, self.stop = limits, time.monotonic(), 0, limits.stop
        self._standings, self._study = standings, study
        self._played: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._look()
        for each in standings():
            for one in each.results:
                self._spent(one.cell, one.figures["seconds"])

    def _look(self) -> None:
        """Count cells, and the rounds of those that are left, by part."""
        self._rounds: Counter[str] = Counter()
        self.all = self.left = 0
        for each in self._standings():
            rounds = self._study.runs[each.part][0].experiment.rounds
            trials, seeds = each.effort - each.tried, len(each.seeds) - len(each.results)
            self._rounds[each.part] += trials * self._study.plan.parts[each.part].tuning_rounds + seeds * rounds
            self.all += each.all
            self.left += trials + seeds

    def go_on(self) -> None:
        """Raise Unfinished if no further cell is to be begun."""
        if self._limits.reached(self._done, time.monotonic() - self._began):
            raise Unfinished

    def count(self, cell: Cell, seconds: float) -> None:
        """Count a cell that was done."""
        self._done += 1
        self._spent(cell, seconds)
        self._look()

    def _spent(self, cell: Cell, seconds: float) -> None:
        self._played[cell.part] += cell.run.experiment.rounds
        self._seconds[cell.part] += seconds

    @property
    def told(self) -> str:
        """How many cells are done and left, and about how long those take of parts that have been seen."""
        known = [part for part in self._rounds if self._played[part]]
        seconds = sum(self._rounds[part] * self._seconds[part] / self._played[part] for part in known)
        least = "at least " if any(self._rounds[part] for part in self._rounds.keys() - set(known)) else ""
        return f"{self.all - self.left} of {self.all} cells, {least}{seconds / 60:.0f} min left"


def _play(cell: Cell, folder: RunFolder, stop: Stop) -> dict[str, Any]:
    """Do a cell's run, in virtual time; return its figures. Sets ``stop`` and raises Unfinished if interrupted."""
    row = cell.row.tuned(cell.values)
    method = mask_learner if row.method is Recorded else row.method  # nobody asks for the entropy of its masks
    outcome = run_local(row.settings(cell.run), cell.graph, folder, engine=Batched, method=method, join_timeout=1e9)
    if outcome.interrupted:
        stop.set()
        raise Unfinished
    if outcome.failure:
        raise outcome.failure
    shutil.rmtree(folder.path / "masks", ignore_errors=True)
    found = measure(row, folder, cell.values, cell.evaluated)
    return {name: getattr(found, name) for name in (*FIGURES, *BYTES)}
