"""The benchmark's results for people and programs: two tables, CSV, JSON, Markdown, two plots."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dslth.bench import results
from dslth.bench.comm import RowResult
from dslth.bench.entropy import ORDERS
from dslth.bench.theirs import Theirs
from dslth.errors import OutputError
from dslth.show.tables import Fitted
from dslth.show.words import amount, percent

__all__ = ["as_json", "plot", "tables", "write"]


class _Sheet(NamedTuple):
    title: str
    note: str
    columns: Mapping[str, Callable[[RowResult], str]]
    others: Sequence[Theirs] = ()

    def cells(self, measured: Sequence[RowResult]) -> dict[str, list[str]]:
        """Return the cells of each column, from our rows and then from theirs."""
        theirs = [
            {"row": each.name, "personal": percent(each.mean), "messages": amount(each.message_bytes)}
            for each in self.others
        ]
        return {
            name: [cell(figures) for figures in measured] + [known.get(name, "–") for known in theirs]
            for name, cell in self.columns.items()
        }


def _number(value: float | None) -> str:
    """Write three significant digits."""
    return "–" if value is None else f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.5f}"


def _sheets(measured: Sequence[RowResult], target: float | None, others: Sequence[Theirs]) -> tuple[_Sheet, _Sheet]:
    late = measured[0].late
    learned: dict[str, Callable[[RowResult], str]] = {
        "row": lambda f: f.row + "*" * (f.evaluated == "before exchange"),
        "personal": lambda f: percent(f.accuracy_personal),
        "worst": lambda f: percent(f.accuracy_worst),
        "payload": lambda f: amount(f.payload_bytes),
        "messages": lambda f: amount(f.message_bytes),
        "link": lambda f: amount(f.link_bytes),
        "bits": lambda f: _number(f.bits_from(0)),
        "to D-PSGD": lambda f: amount(f.message_bytes_to_dpsgd),
        "ratio": lambda f: _number(f.to_dpsgd_ratio),
    }
    note = (
        "Personal accuracy at the end, mean and worst peer (* taken before the exchange, where that is better); bytes "
        "sent by all peers; bits: payload bits per weight, directed edge and round; message bytes until the mean is "
        "what D-PSGD ends with, and their ratio to D-PSGD's own."
    )
    if late_rows := [f"{figures.row} {figures.missing}" for figures in measured if figures.missing]:
        note += f" Messages that missed the deadline, which is then part of the result: {', '.join(late_rows)}."
    note = " ".join([note, *(each.note for each in others)])
    if target is not None:
        learned[f"to {100 * target:g} %"] = lambda f: amount(f.message_bytes_to_target)
    coded: dict[str, Callable[[RowResult], str]] = {
        "row": lambda f: f.row,
        "bits": lambda f: _number(f.bits_from(0)),
        f"from {late}": lambda f: _number(f.bits_from(late)),
        "H1": lambda f: _number(f.bound_from(late, 1)),
        "of H1": lambda f: _number(f.ratio_from(late, 1)),
        "H2": lambda f: _number(f.bound_from(late, 2)),
        "of H2": lambda f: _number(f.ratio_from(late, 2)),
        "encode": lambda f: f"{f.encode_ms:.1f} ms {100 * f.encode_share:.0f} %",
        "decode": lambda f: f"{f.decode_ms:.1f} ms {100 * f.decode_share:.0f} %",
        "same": lambda f: {True: "yes", False: "NO", None: "–"}[f.same_masks],
    }
    what = (
        f"Bits: payload bits per weight, of all rounds and from round {late} on; H1, H2: entropy of the same masks "
        "given the last one and the last two, and how many times that was spent; encode and decode: time a round and "
        "peer, and its share of the round; same: masks equal the bitpack run's in every round of every peer."
    )
    return _Sheet("accuracy and bytes", note, learned, others), _Sheet("coding", what, coded)


SPARE = ("link", "payload", "ratio", "worst", "of H1", "H1", "decode", "encode", "same")
"""Columns that are left out on a narrow terminal, the first one first."""


def tables(measured: Sequence[RowResult], target: float | None, others: Sequence[Theirs] = ()) -> list[Fitted]:
    """Make the two tables, the first with figures of others too; a terminal of 100 columns shows them whole."""
    return [
        Fitted(sheet.title, sheet.cells(measured), spare=SPARE, note=sheet.note)
        for sheet in _sheets(measured, target, others)
    ]


def as_json(
    measured: Sequence[RowResult], settings: Mapping[str, Any], target: float | None, others: Sequence[Theirs] = ()
) -> dict[str, Any]:
    """Return everything, as ``--json`` prints it."""
    return {
        "settings": dict(settings),
        "target": target,
        "rows": [figures.record() for figures in measured],
        "theirs": [each.model_dump(mode="json") for each in others],
    }


def write(
    measured: Sequence[RowResult],
    settings: Mapping[str, Any],
    target: float | None,
    folder: Path,
    others: Sequence[Theirs] = (),
) -> None:
    """Write ``comm.json``, ``comm.csv`` (our rows, what is one value only) and ``comm.md``; raises OutputError."""
    records = [figures.record() for figures in measured]
    results.write(folder, "comm", as_json(measured, settings, target, others), records)
    lines = []
    for sheet in _sheets(measured, target, others):
        cells = [list(sheet.columns), ["---", *["---:"] * (len(sheet.columns) - 1)]]
        cells += map(list, zip(*sheet.cells(measured).values(), strict=True))
        lines += [*("| " + " | ".join(row) + " |" for row in cells), "", sheet.note, ""]
    try:
        (folder / "comm.md").write_text("\n".join(lines), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}") from None


def plot(measured: Sequence[RowResult], folder: Path) -> bool:
    """Draw ``accuracy.png`` and ``bits.png``; False, and nothing drawn, without matplotlib."""
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError:
        return False
    grown, spent = (Figure(figsize=(8, 5), layout="constrained") for _ in range(2))
    accuracy = grown.add_subplot(
        xscale="log", xlabel="message bytes sent by all peers", ylabel="mean personal accuracy"
    )
    bits = spent.add_subplot(yscale="log", xlabel="round", ylabel="payload bits per weight and directed edge")
    for number, figures in enumerate(measured):
        style: dict[str, Any] = {"color": colormaps["tab20"](number), "linestyle": "-" if figures.bounds else "--"}
        if figures.payload_bytes:  # before the first exchange there were hellos only
            first = figures.evaluated == "before exchange" and not figures.curve[0][0]
            points = [(sent, mean) for _, sent, mean in figures.curve[first:]]
            accuracy.plot(*zip(*points, strict=True), label=figures.row, marker=".", markersize=4, **style)
            bits.plot(figures.bits, label=figures.row, **style)
        else:
            accuracy.axhline(figures.accuracy_personal, label=f"{figures.row} (end)", **style | {"linestyle": ":"})
    bounds = next((figures.bounds for figures in measured if figures.bounds), [])
    for order, values in zip(ORDERS, zip(*bounds, strict=True), strict=False):
        bits.plot(values, label=f"entropy, last {order}", color="0.4", linestyle=":" if order == 1 else "-.")
    bits.locator_params(axis="x", integer=True)
    for figure, axes, name in ((grown, accuracy, "accuracy.png"), (spent, bits, "bits.png")):
        axes.grid(visible=True, alpha=0.3)
        axes.margins(x=0.02)
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
        figure.savefig(folder / name, dpi=150)
    return True
