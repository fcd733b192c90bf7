"""``dslth bench speed``: where the time of a round goes, beside a plain step of training the same network.

Everything runs in this process with one thread, phase after phase, and again; each figure is the least of all repeats.
"""

import os
import platform
import runpy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dslth import algorithm, config, topology
from dslth.bench import results
from dslth.coding import codecs
from dslth.config import DataName, ModelName, Preset, RunConfig
from dslth.engines.supervisor import run_local
from dslth.errors import ConfigError
from dslth.exchange.ledger import Ledger
from dslth.exchange.streams import MaskCoding
from dslth.learner import Learner, processor, threads
from dslth.learning import data, models, supermask
from dslth.learning.dataset import CLASSES
from dslth.masks import BitMask
from dslth.runs.folder import RunFolder
from dslth.runs.sinks import JsonLines
from dslth.runs.summary import rounds_of
from dslth.show.tables import Fitted
from dslth.transport.memory import MemoryNetwork, MemoryTransport

__all__ = ["PARTS", "Figure", "Pace", "as_json", "machine", "measure", "pace", "plot", "tables", "theirs", "write"]

PARTS = (
    *("batch", "extraction", "masked weights", "forward", "backward", "update"),
    *("fine-tuning", "encode", "decode", "evaluation", "report"),
)
"""The phases of a round in their order; those up to the update come in every local step."""
STEP = PARTS[:6]
WHOLE, DENSE, PRODUCTS, THEIRS = "local update", "dense step", "products alone", "authors' step"
EVALUATION = "one evaluation"
SLOWED = 0.01


@dataclass(frozen=True)
class Figure:
    """The least milliseconds of a phase in one round of one peer, of processor time and by the clock.

    ``local update`` is all local steps at once; the ``dense step`` (forward, back, SGD on the same network's weights),
    its ``products alone`` (convolutions and linear layers, forward and back) and the ``authors' step`` are one step,
    multiplied by the local steps of a round. ``evaluation`` is a round's part of ``one evaluation``, which comes as
    often as the run says: by default it takes a tenth of the compute at most.
    """

    data: str
    model: str
    preset: str
    phase: str
    processor_ms: float
    wall_ms: float


@dataclass(frozen=True)
class Pace:
    """A ring of four peers, one of them slowed or none; bytes are those of all peers, seconds a mean round's."""

    run: str
    payload_bytes: int
    message_bytes: int
    round_seconds: float
    wait_seconds: float


class _Watch:
    """Keeps the least processor and wall milliseconds of each name."""

    def __init__(self) -> None:
        self.least: dict[str, tuple[float, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        before = time.process_time(), time.perf_counter()
        yield
        spent = 1000 * (time.process_time() - before[0]), 1000 * (time.perf_counter() - before[1])
        known = self.least.get(name, spent)
        self.least[name] = min(known[0], spent[0]), min(known[1], spent[1])


class _Dissected(Learner):
    """A learner whose local step can be taken apart; what the parts compute is thrown away."""

    def local_update(self, round_: int) -> tuple[BitMask, float]:
        """Take a round's local steps as after a round without evaluation, which leaves its masks to the next round."""
        self._used = None
        return super().local_update(round_)

    def step(self, watch: _Watch) -> tuple[Tensor, Tensor]:
        """Time the parts of one local step; return its minibatch."""
        with watch("batch"):
            images, labels = self._samples.batch(0, 0)
        with watch("extraction"):
            masks = algorithm.extract_masks(self._scores, self._lifts(), self._setting)
        with watch("masked weights"):
            masked = [w.requires_grad_() for w in algorithm.masked_weights(self.net, masks)]
        with watch("forward"):
            loss = F.cross_entropy(self.net(masked, images), labels)
        with watch("backward"):
            grads = torch.autograd.grad(loss, masked)
        with watch("update"):
            layers = zip(grads, self.net.weights, self._scores, strict=True)
            algorithm.local_step(self._scores, [algorithm.straight_through(*layer) for layer in layers], self._setting)
        return images, labels


class _Dense:
    """The same network, its convolution and linear weights trained by plain SGD."""

    def __init__(self, run: RunConfig) -> None:
        experiment = run.experiment
        module = models.build(experiment.model, data.DATASETS[experiment.data.name].shape, CLASSES)
        self._net = supermask.freeze(module, experiment.seed, experiment.model.init, experiment.algorithm.density)
        self._weights = [w.clone().requires_grad_() for w in self._net.weights]
        self._optimizer = torch.optim.SGD(self._weights, lr=1e-3)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take one step."""
        self._optimizer.zero_grad()
        F.cross_entropy(self._net(self._weights, images), labels).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def products(self, images: Tensor) -> Callable[[], None]:
        """Return a function that computes each convolution and linear layer, forward and back, and nothing else."""
        inputs: list[tuple[nn.Module, Tensor]] = []
        layers = [layer for layer in self._net.module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        hooks = [layer.register_forward_pre_hook(lambda layer, x: inputs.append((layer, x[0]))) for layer in layers]
        with torch.no_grad():
            self._net(self._weights, images)
        for hook in hooks:
            hook.remove()
        given = [x.detach().requires_grad_(number > 0) for number, (_, x) in enumerate(inputs)]

        def compute() -> None:
            for (layer, _), weight, x in zip(inputs, self._weights, given, strict=True):
                y = torch.func.functional_call(layer, {"weight": weight}, (x,))
                torch.autograd.grad(y, (weight, x) if x.requires_grad else weight, y.detach())

        return compute


def theirs(path: Path) -> Callable[[], object]:
    """Return the function ``step`` of a Python file: one step of other code with 128 images and what it then sends.

    Runs the file. Raises ConfigError if it has no such function.
    """
    try:
        step = runpy.run_path(str(path)).get("step")
    except (OSError, SyntaxError, ImportError) as error:
        raise ConfigError(f"--theirs {path}: cannot be run: {error}") from None
    if not callable(step):
        raise ConfigError(f"--theirs {path}: it has no function step()")
    return step  # type: ignore[no-any-return]


def measure(
    name: DataName,
    model: ModelName,
    preset: Preset,
    folder: Path,
    repeats: int,
    other: Callable[[], object] | None = None,
    data_dir: Path | None = None,
) -> list[Figure]:
    """Measure one network with one preset: as many rounds as ``repeats``, of two peers that exchange masks.

    ``folder`` is where reports are written to; it exists. Raises DataError.
    """
    place = {"folder": str(data_dir)} if data_dir else {}
    settings = {"data": {"name": name.value} | place, "model": {"name": model.value}, "preset": preset.value}
    settings["evaluate_every"] = "auto"
    run = config.load("ring", {"experiment": settings})
    steps = run.experiment.algorithm.local_steps
    watch = _Watch()
    with threads(1):
        peer, neighbour = (_Dissected(number, 10, run.experiment, run.device(number)) for number in (0, 1))
        dense = _Dense(run)
        products = dense.products(peer.step(_Watch())[0])
        coding = MaskCoding(peer.sizes, run.experiment.codec, peer.forecast)
        chain = coding.first(0, peer.ones)
        sink = JsonLines(folder / "report.jsonl")
        ledger = Ledger(0, (1,), MemoryTransport(MemoryNetwork(), 0), [sink])
        for round_ in range(repeats):
            images, labels = peer.step(watch)
            with watch(DENSE):
                dense.step(images, labels)
            with watch(PRODUCTS):
                products()
            if other:
                with watch(THEIRS):
                    other()
            with watch(WHOLE):
                mask, loss = peer.local_update(round_)
            with watch("encode"):
                codec, payload = coding.encode(mask, chain)
            with watch("decode"):
                decoded = codecs.BY_ID[codec].decode(payload, chain)
            if decoded != mask:
                raise AssertionError("the codec is not lossless")
            chain = coding.after(chain, mask, round_)
            received = {1: neighbour.local_update(round_)[0]}
            neighbour.fine_tune({0: mask})
            with watch("fine-tuning"):
                peer.fine_tune(received)
            with watch(EVALUATION):
                accuracy = peer.evaluation()()
            with watch("report"):
                ledger.report(ledger.end_round(round_, mask, loss, ()), accuracy)
        sink.close()
    watch.least["evaluation"] = watch.least[EVALUATION]
    times: dict[str, float] = {
        phase: steps if phase in (*STEP, DENSE, PRODUCTS, THEIRS) else 1 for phase in watch.least
    }
    times["extraction"] += 1  # the mask to send
    times["evaluation"] = 1 / peer.evaluate_every
    return [
        Figure(name, model, preset, phase, times[phase] * least[0], times[phase] * least[1])
        for phase, least in watch.least.items()
    ]


def pace(folder: Path) -> list[Pace]:
    """Run four peers twice, the second time with one that is slowed a hundredfold."""
    rows = []
    for name, slow in (("all alike", {}), (f"one at speed {SLOWED:g}", {0: {"speed": SLOWED}})):
        experiment = {"rounds": 8, "evaluate_every": 8, "model": {"name": "mlp"}}
        run = config.load("ring", {"graph": {"kind": "ring", "peers": 4}, "experiment": experiment, "peers": slow})
        place = RunFolder(folder / name.replace(" ", "-"))
        outcome = run_local(run, topology.build(run.graph, run.experiment.seed), place)
        summary = outcome.measured()
        reports = [report.seconds for events in place.events().values() for report in rounds_of(events)]
        total = sum(sum(seconds.model_dump().values()) for seconds in reports)
        rows.append(
            Pace(
                name,
                summary.payload_bytes_sent,
                summary.message_bytes_sent,
                total / len(reports),
                sum(seconds.wait for seconds in reports) / len(reports),
            )
        )
    return rows


def machine() -> str:
    """Return what was computed with, in one line: the processor, its cores, what torch makes of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, {processor()}, one thread"


def tables(figures: Sequence[Figure], paces: Sequence[Pace]) -> list[Fitted]:
    """Show processor time, time by the clock, and what a slowed peer costs."""
    cases = _cases(figures)
    known = (*PARTS, WHOLE, DENSE, PRODUCTS, THEIRS, EVALUATION)
    phases = [phase for phase in known if all(phase in c for c in cases.values())]
    shown = []
    for title, of in (("processor", "processor_ms"), ("clock", "wall_ms")):
        columns = {"phase": [*phases, f"{WHOLE} / {DENSE}"]}
        for name, case in cases.items():
            spent = {phase: getattr(figure, of) for phase, figure in case.items()}
            columns[name] = [*(f"{spent[phase]:.2f}" for phase in phases), f"{spent[WHOLE] / spent[DENSE]:.2f}"]
        shown.append(Fitted(f"milliseconds a round, {title}", columns, note=machine()))
    less = {
        "ring of four": [row.run for row in paces],
        "payload bytes": [f"{row.payload_bytes:,}" for row in paces],
        "message bytes": [f"{row.message_bytes:,}" for row in paces],
        "s a round": [f"{row.round_seconds:.3f}" for row in paces],
        "waiting": [f"{row.wait_seconds:.3f}" for row in paces],
    }
    return [*shown, Fitted("bytes do not depend on pace", less)]


def _cases(figures: Sequence[Figure]) -> dict[str, dict[str, Figure]]:
    cases: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        cases.setdefault(f"{figure.model} {figure.preset}", {})[figure.phase] = figure
    return cases


def as_json(figures: Sequence[Figure], paces: Sequence[Pace]) -> dict[str, Any]:
    """Return everything, as ``--json`` prints it."""
    return {"machine": machine(), "phases": [*map(asdict, figures)], "pace": [*map(asdict, paces)]}


def write(figures: Sequence[Figure], paces: Sequence[Pace], folder: Path) -> None:
    """Write ``speed.json`` and ``speed.csv`` (the phases); raises OutputError."""
    results.write(folder, "speed", as_json(figures, paces), [*map(asdict, figures)])


def plot(figures: Sequence[Figure], folder: Path) -> bool:
    """Draw ``speed.png``, a bar of phases for each network and preset; False, and no plot, without matplotlib.

    The unit of a bar is the dense steps that it is compared with, so that the table's ratio can be seen.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure as Picture
    except ImportError:
        return False
    cases = _cases(figures)
    picture = Picture(figsize=(9, max(4, 1.5 + 0.6 * len(cases))), layout="constrained")
    axes = picture.add_subplot(xlabel="processor time of a round; 1: as many dense steps of the same network")
    picture.suptitle(machine(), fontsize=8)
    units = [case[DENSE].processor_ms for case in cases.values()]
    start = [0.0] * len(cases)
    for number, phase in enumerate(PARTS):
        widths = [case[phase].processor_ms / unit for case, unit in zip(cases.values(), units, strict=True)]
        axes.barh(list(cases), widths, left=start, label=phase, color=colormaps["tab20"](number))
        start = [a + b for a, b in zip(start, widths, strict=True)]
    for phase, marker in ((PRODUCTS, "|"), (THEIRS, "D")):
        places = {
            name: case[phase].processor_ms / case[DENSE].processor_ms for name, case in cases.items() if phase in case
        }
        if places:
            axes.scatter(list(places.values()), list(places), marker=marker, color="black", s=50, label=phase, zorder=3)
    axes.axvline(1, color="black", linestyle=":", label=DENSE)
    axes.invert_yaxis()
    picture.legend(loc="outside right upper", fontsize=8, frameon=False)
    picture.savefig(folder / "speed.png", dpi=150)
    return True
