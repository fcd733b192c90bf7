"""``dslth bench comm``: what communication costs and what it gains; each method is a row, run one after the other.

All rows share data split, model, rounds, seed, batches and local steps, and the loop and the exchange of the peers: as
processes over ZeroMQ on free ports of this machine, or as threads over memory. Accuracy is on test samples of a peer's
own classes; bytes are those sent by all peers together.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dslth.bench.entropy import ORDERS, mask_bits
from dslth.bench.methods import METHODS, Alone, Compared, before_exchange
from dslth.bench.tuning import VALIDATION, Unfinished, Values, search, words
from dslth.coding import codecs
from dslth.config import CodecName, RunConfig, Schedule, TransportName
from dslth.engines.base import PeerJob, mask_learner
from dslth.engines.supervisor import run_local
from dslth.errors import ConfigError
from dslth.learner import Learner
from dslth.masks import BitMask, packed_size
from dslth.peer import Method
from dslth.runs.events import Joined, RoundReport
from dslth.runs.folder import RunFolder
from dslth.runs.summary import summarise
from dslth.show.words import amount, percent
from dslth.stop import Stop
from dslth.topology import Topology

__all__ = ["ROWS", "Recorded", "Row", "RowResult", "chosen", "compare", "held_out", "measure", "run_rows"]

REFERENCE, YARDSTICK = "mce-bitpack", "dpsgd"
"""The row whose masks the lossless ones must equal, and the one whose final accuracy the others are to reach."""


# --- rows -----------------------------------------------------------------------------------------------------------


def _masks_file(folder: RunFolder, peer: int) -> Path:
    return folder.path / "masks" / f"peer-{peer}.bits"


class Recorded(Learner):
    """Learns a mask, and keeps the packed masks that it sends, for their entropy.

    Without ``lift`` its masks come from its own scores alone: no aggregation tensor, but fine-tuning.
    """

    def __init__(self, job: PeerJob, *, lift: bool = True) -> None:
        super().__init__(job.peer, job.topology.peers, job.run.experiment, job.run.device(job.peer))
        self._file, self._lift = _masks_file(job.folder, job.peer), lift
        self._file.parent.mkdir(exist_ok=True)

    def local_update(self, round_: int) -> tuple[BitMask, float]:
        """Take the round's local steps, and keep the mask to send."""
        mask, loss = super().local_update(round_)
        with self._file.open("ab") as kept:
            kept.write(mask.pack())
        return mask, loss

    def _lifts(self) -> list[Tensor]:
        lifts = super()._lifts()
        return lifts if self._lift else [torch.zeros_like(a) for a in lifts]


@dataclass(frozen=True)
class Row:
    """A way to learn: the method of each peer, and what the row changes in the run's settings.

    ``grid`` has the values to tune by name, and those to try: of a mask's algorithm, or of the method.
    """

    name: str
    what: str
    method: Callable[[PeerJob], Method[Any, Any]]
    codec: str | None = None
    algorithm: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def values(self, run: RunConfig) -> dict[str, float]:
        """Return the values to tune as they are without tuning."""
        if isinstance(self.method, Compared):
            return METHODS[self.method.method].values() | dict(self.method.values)
        algorithm = self.settings(run).experiment.algorithm
        return {name: getattr(algorithm, name) for name in self.grid}

    def tuned(self, values: Values) -> "Row":
        """Return the row with these values."""
        if isinstance(self.method, Compared):
            return replace(self, method=replace(self.method, values=values))
        return replace(self, algorithm={**self.algorithm, **values})

    def settings(self, run: RunConfig) -> RunConfig:
        """Return the run's settings for this row; peers listen on free ports."""
        algorithm = run.experiment.algorithm.model_copy(update=self.algorithm)
        every = 1 if run.experiment.evaluate_every == "auto" else run.experiment.evaluate_every  # for the curves
        changes = {"algorithm": algorithm, "codec": self.codec or run.experiment.codec, "evaluate_every": every}
        return run.model_copy(update={"network": None, "experiment": run.experiment.model_copy(update=changes)})


MASK_RATES = {"lr": (0.3, 1.0, 3.0, 10.0), "fine_tune_lr": (0.3, 1.0, 3.0)}
"""As many as the methods that masks are compared with have to choose from."""
FALLING = {"heavy_ball": 0.9, "relative": True, "schedule": Schedule.LINEAR, "fine_tune_lr": 0.0}
FALLING_RATES = (0.03, 0.1, 0.3)
MASK_RATE = {"lr": MASK_RATES["lr"]}

_CODECS = (*(codec.name for codec in codecs.BY_ID.values()), CodecName.AUTO)
_ROWS = (
    *(Row(f"mce-{name}", f"MCE-PL, codec {name}", Recorded, codec=name, grid=MASK_RATES) for name in _CODECS),
    Row("mce-strong", "MCE-PL, with a heavy ball", Recorded, algorithm={"heavy_ball": 0.9}, grid=MASK_RATES),
    Row(
        "mce-relative",
        "MCE-PL, with relative steps that fall to 0 (preset strong)",
        Recorded,
        algorithm=FALLING,
        grid={"lr": FALLING_RATES, "lift": (1.0, 2.0, 4.0)},
    ),
    Row(
        "mce-relative-alone",
        "MCE-PL without exchange, with relative steps that fall to 0",
        mask_learner,
        algorithm={**FALLING, "exchange": False},
        grid={"lr": FALLING_RATES},
    ),
    Row("mce-alone", "MCE-PL without exchange", mask_learner, algorithm={"exchange": False}, grid=MASK_RATE),
    Row("mce-no-lift", "MCE-PL without aggregation tensor", partial(Recorded, lift=False), grid=MASK_RATES),
    Row("mce-no-tune", "MCE-PL without fine-tuning", Recorded, algorithm={"fine_tune_lr": 0.0}, grid=MASK_RATE),
    *(
        Row(
            name,
            (method.__doc__ or "").partition(":")[0],
            Compared(name),
            algorithm={"exchange": method is not Alone},
            grid=method.grid,
        )
        for name, method in METHODS.items()
    ),
)
ROWS: Mapping[str, Row] = {row.name: row for row in _ROWS}


def chosen(names: str | None) -> list[Row]:
    """Return the rows of a list such as ``mce-auto,dpsgd``; without one, all whose libraries are installed.

    Raises ConfigError for a row that is unknown, or whose library is missing.
    """
    wanted = [name.strip() for name in names.split(",")] if names else [name for name in ROWS if not _lacks(name)]
    for name in wanted:
        if name not in ROWS:
            raise ConfigError(f"--rows: there is no row {name!r}; there are {', '.join(ROWS)}")
        if library := _lacks(name):
            raise ConfigError(f"--rows: {name} needs the library {library}: pip install 'dslth[bench]'")
    return [row for row in ROWS.values() if row.name in wanted]


def _lacks(name: str) -> str | None:
    """Return the library that a row needs and that is not installed."""
    needs = METHODS[name].needs if name in METHODS else None
    return needs if needs and find_spec(needs) is None else None


# --- figures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowResult:
    """The figures of one row. None: there is no such figure. ``values`` are those that can be tuned.

    ``evaluated`` says when accuracy was measured: after the exchange, or, for baselines that do better there, between
    the local steps and the exchange; ``accuracy_other`` is the other one. ``accuracies`` are the peers' at the end;
    ``curve`` holds, by round, message bytes so
    far and mean personal accuracy. ``bits`` are payload bits per weight, directed edge and round; ``bounds`` the
    entropies of the same masks in the same unit, given the last one and the last two. Shares are of the time of a
    round, with waiting, without evaluation. ``same_masks``: all masks have the digests of the bitpack run's.
    """

    row: str
    what: str
    values: Mapping[str, float]
    accuracy_personal: float
    accuracy_worst: float
    evaluated: str
    accuracy_other: float | None
    payload_bytes: int
    message_bytes: int
    link_bytes: int | None
    encode_ms: float
    decode_ms: float
    encode_share: float
    decode_share: float
    missing: int
    refused: int
    seconds: float
    accuracies: list[float]
    curve: list[tuple[int, int, float]]
    bits: list[float]
    bounds: list[list[float]]
    digests: dict[tuple[int, int], str]
    same_masks: bool | None = None
    message_bytes_to_target: int | None = None
    message_bytes_to_dpsgd: int | None = None
    to_dpsgd_ratio: float | None = None

    @property
    def late(self) -> int:
        """The first round in which masks count as settled."""
        rounds = len(self.bits)
        return 10 if rounds >= 13 else min(3, rounds - 1)

    def bits_from(self, round_: int) -> float:
        """Return the mean bits from a round on."""
        return fmean(self.bits[round_:])

    def bound_from(self, round_: int, order: int) -> float | None:
        """Return the mean entropy from a round on, given the last ``order`` masks."""
        return fmean(given[ORDERS.index(order)] for given in self.bounds[round_:]) if self.bounds else None

    def ratio_from(self, round_: int, order: int) -> float | None:
        """Return the bits as a multiple of the entropy."""
        bound = self.bound_from(round_, order)
        return self.bits_from(round_) / bound if bound else None

    def bytes_to(self, accuracy: float) -> int | None:
        """Return the message bytes after which the mean personal accuracy first reached ``accuracy``."""
        return next((sent for _, sent, mean in self.curve if mean >= accuracy - 1e-9), None)

    def record(self) -> dict[str, Any]:
        """Return all figures by name: the lists by round except the digests, and what follows from them."""
        told = {key: value for key, value in vars(self).items() if key not in ("bits", "bounds", "digests")}
        told["values"] = words(self.values)
        told |= {"bits_by_round": self.bits, "bounds_by_round": self.bounds, "late_from_round": self.late}
        for name, start in (("", 0), ("late_", self.late)):
            told[f"{name}bits_per_weight"] = self.bits_from(start)
            for order in ORDERS:
                told[f"{name}entropy_given_last_{order}"] = self.bound_from(start, order)
                told[f"{name}ratio_to_entropy_given_last_{order}"] = self.ratio_from(start, order)
        return told


def measure(
    row: Row, folder: RunFolder, values: Values = MappingProxyType({}), evaluated: str | None = None
) -> RowResult:
    """Work out a row's figures from its run folder; ``evaluated`` as it was found best when values were chosen."""
    summary, events = summarise(folder), folder.events()
    joined = [event for said in events.values() for event in said if isinstance(event, Joined)]
    reports = [event for said in events.values() for event in said if isinstance(event, RoundReport)]
    by_round = [[report for report in reports if report.round == number] for number in range(summary.rounds)]
    edges_weights = max(1, summary.directed_edges * summary.masked_weights)
    hellos = sum(_sent(event)[1] for event in joined)
    sent = list(accumulate((sum(_sent(report)[1] for report in step) for step in by_round), initial=hellos))
    points = {
        "after exchange": [(n, sent[n + 1], shares) for n, step in enumerate(by_round) if (shares := _told(step))]
    }
    if before := _before(folder, joined):
        points["before exchange"] = [(number, sent[number], shares) for number, shares in before.items()]
    ends = {when: path[-1][2] for when, path in points.items()}
    best, *others = sorted(ends, key=lambda when: (when != evaluated, -fmean(ends[when])))
    seconds = Counter[str]()
    for report in reports:
        seconds.update(report.seconds.model_dump(exclude={"evaluate"}))
    return RowResult(
        row=row.name,
        what=row.what,
        values=values,
        accuracy_personal=fmean(ends[best]),
        accuracy_worst=min(ends[best]),
        evaluated=best,
        accuracy_other=fmean(ends[others[0]]) if others else None,
        payload_bytes=summary.payload_bytes_sent,
        message_bytes=summary.message_bytes_sent,
        link_bytes=summary.link_bytes_sent,
        encode_ms=1000 * seconds["encode"] / len(reports),
        decode_ms=1000 * seconds["decode"] / len(reports),
        encode_share=seconds["encode"] / seconds.total(),
        decode_share=seconds["decode"] / seconds.total(),
        missing=sum(peer.missing for peer in summary.peers),
        refused=sum(sum(peer.refused.values()) for peer in summary.peers),
        seconds=summary.seconds,
        accuracies=ends[best],
        curve=[(number, spent, fmean(shares)) for number, spent, shares in points[best]],
        bits=[8 * sum(_sent(report)[0] for report in step) / edges_weights for step in by_round],
        bounds=_bounds(folder, joined, edges_weights),
        digests={(report.peer, report.round): report.mask_digest for report in reports},
    )


def _sent(event: Joined | RoundReport) -> tuple[int, int]:
    """Return payload and message bytes that an event reports."""
    links = event.links.values()
    return sum(link.payload_sent for link in links), sum(link.message_sent for link in links)


def _told(step: Sequence[RoundReport]) -> list[float]:
    """Return the peers' personal accuracies of a round, none if it was not evaluated."""
    return [report.accuracy_personal for report in step if report.accuracy_personal is not None]


def _before(folder: RunFolder, joined: Sequence[Joined]) -> dict[int, list[float]]:
    """Return the peers' personal accuracies before the exchange by round; empty if nobody wrote them."""
    shares: dict[int, dict[int, float]] = {}
    for peer in {event.peer for event in joined}:
        if (file := before_exchange(folder, peer)).exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                round_, personal, _ = json.loads(line)
                shares.setdefault(round_, {})[peer] = personal  # a round that was played again counts once
    return {round_: list(by_peer.values()) for round_, by_peer in shares.items()}


def _bounds(folder: RunFolder, joined: Sequence[Joined], edges_weights: int) -> list[list[float]]:
    """Return, by round, the masks' entropies in bits per weight, each mask counted once per receiver."""
    total: NDArray[np.float64] | None = None
    for event in joined:
        if (file := _masks_file(folder, event.peer)).exists():
            packed, size = file.read_bytes(), packed_size(event.sizes)
            chunks = (packed[start : start + size] for start in range(0, len(packed), size))
            bits = mask_bits(BitMask.unpack(chunk, event.sizes).arrays() for chunk in chunks)
            total = len(event.neighbours) * np.array(bits) + (0 if total is None else total)
    return [] if total is None else (total / edges_weights).tolist()


# --- all rows -------------------------------------------------------------------------------------------------------


def run_rows(
    rows: Sequence[Row],
    run: RunConfig,
    topology: Topology,
    folder: Path,
    stop: Stop,
    *,
    transport: TransportName = TransportName.ZEROMQ,
    tune: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[RowResult]:
    """Run rows one after the other and yield their figures; ends early if a run is interrupted or ``stop`` is set.

    Raises DslthError where a run fails.
    With ``tune`` a row runs with each learning rate of its grid (and beyond, where the best is at an end), then with
    each of its other values and the best rate, and what ends with the best accuracy on held-out training samples runs
    once more, with all training samples.
    """

    def play(row: Row, settings: RunConfig, values: Values, place: Path, evaluated: str | None = None) -> RowResult:
        if stop.is_set():
            raise Unfinished
        run_folder, by = RunFolder(place), row.tuned(values)
        outcome = run_local(by.settings(settings), topology, run_folder, transport=transport, method=by.method)
        if outcome.interrupted:
            raise Unfinished
        if outcome.failure:
            raise outcome.failure
        figures = measure(row, run_folder, values, evaluated)
        shutil.rmtree(place / "masks", ignore_errors=True)
        say(
            f"{place.name}: personal accuracy {percent(figures.accuracy_personal)}, "
            f"messages {amount(figures.message_bytes)}, {figures.seconds:.1f} s"
            + (f"; {figures.missing} messages missed the deadline" if figures.missing else "")
        )
        return figures

    def attempt(row: Row, values: Values) -> RowResult:
        return play(row, held_out(run), values, folder.with_name("tuning") / f"{row.name}-{words(values)}")

    for row in rows:
        values, evaluated = row.values(run), None
        try:
            if tune and row.grid:
                best = search(values, row.grid, partial(attempt, row))
                values, evaluated = dict(best.values), best.evaluated
            yield play(row, run, values, folder / row.name, evaluated)
        except Unfinished:
            return


def held_out(run: RunConfig, share: float = VALIDATION) -> RunConfig:
    """Return the run in which peers hold out a share of their training samples, and are evaluated on those."""
    data = run.experiment.data.model_copy(update={"validation": share})
    return run.model_copy(update={"experiment": run.experiment.model_copy(update={"data": data})})


def compare(measured: Sequence[RowResult], target: float | None) -> list[RowResult]:
    """Fill in what needs two rows: whether masks are the same, and the cost of D-PSGD's accuracy."""
    by_name = {figures.row: figures for figures in measured}
    reference, yardstick = by_name.get(REFERENCE), by_name.get(YARDSTICK)
    least = yardstick.bytes_to(yardstick.accuracy_personal) if yardstick else None
    compared = []
    for figures in measured:
        lossless = ROWS[figures.row].codec is not None and reference is not None
        reached = figures.bytes_to(yardstick.accuracy_personal) if yardstick else None
        compared.append(
            replace(
                figures,
                same_masks=figures.digests == reference.digests if lossless and reference else None,
                message_bytes_to_target=None if target is None else figures.bytes_to(target),
                message_bytes_to_dpsgd=reached,
                to_dpsgd_ratio=None if reached is None or not least else reached / least,
            )
        )
    return compared
