"""An experiment's results for people and programs: tables, Markdown, CSV, JSON, a picture; all from its cells alone."""

from collections.abc import Callable, Mapping, Sequence
from math import log10
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from dslth.bench import results
from dslth.bench.experiments.plan import Plan, Runs
from dslth.bench.experiments.subsets import DECILES, bits_per_candidate, counting
from dslth.bench.experiments.work import Done
from dslth.errors import OutputError
from dslth.show.tables import Fitted, where_unlike
from dslth.show.words import amount, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["as_json", "plot", "tables", "write"]

Columns = dict[str, list[str]]
Figures = Mapping[str, Any]
MIDDLE = len(DECILES) // 2


# --- tables ---------------------------------------------------------------------------------------------------------


def tables(plan: Plan, done: Sequence[Done]) -> list[Fitted]:
    """Make a table of the runs, and one of the sums."""
    return [Fitted(title, columns, spare=spare, note=note) for title, columns, spare, note in _sheets(plan, done)]


def _sheets(plan: Plan, done: Sequence[Done]) -> list[tuple[str, Columns, tuple[str, ...], str]]:
    sheets: list[tuple[str, Columns, tuple[str, ...], str]] = []
    if summed := _by_variant(done, "drawn"):
        note = (
            "Error of the best subset of n candidates, medians and deciles over targets and seeds; bits of error won "
            "with each further candidate, by a line through the medians; of the agents one by one, the least and the "
            "most; and by counting sums, without a free parameter."
        )
        sheets.append(("sums of subsets", _sum_columns(summed), ("by agent", "deciles"), note))
    if plan.runs and (learned := _by_variant(done, "curve")):
        against = f" Gain: over {plan.runs.against}, seed by seed, in points." if plan.runs.against else ""
        note = (
            f"Personal accuracy in %, mean over {_count(max(map(len, learned.values())))} ± standard deviation; worst "
            f"peer, mean over seeds; bytes sent by all peers; payload bits per weight, edge and round.{against}"
        )
        spare = ("bits", "virtual time", "weights kept", "global", "filters left", "messages", "worst")
        sheets.append((plan.title, _run_columns(plan.runs, learned), spare, note))
    return sheets


def _count(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def _by_variant(done: Sequence[Done], having: str) -> dict[str, dict[int, Figures]]:
    """Return the figures that have a key: variant -> seed -> figures."""
    found: dict[str, dict[int, Figures]] = {}
    for each in done:
        if having in each.figures:
            found.setdefault(each.cell.variant, {})[each.cell.seed] = each.figures
    return found


def _sum_columns(summed: Mapping[str, Mapping[int, Figures]]) -> Columns:
    columns: Columns = {}
    for by_seed in summed.values():
        first, all_seeds = next(iter(by_seed.values())), list(by_seed.values())
        numbers, medians = first["candidates"], _deciles(all_seeds)
        slopes = [slope for figures in all_seeds for slope in figures["bits_per_candidate_by_agent"]]
        counted = [counting(first["drawn"], first["mask"], n) for n in numbers]
        theory = [error for error in counted if error is not None]
        cells = {
            "weights": first["drawn"],
            "masks": first["mask"],
            "n": f"{numbers[0]} to {numbers[-1]}",
            "error": f"{10 ** medians[0][MIDDLE]:.1e} to {10 ** medians[-1][MIDDLE]:.1e}",
            "deciles": f"{10 ** medians[-1][0]:.0e} to {10 ** medians[-1][-1]:.0e}",
            "bits": f"{bits_per_candidate(numbers, [10 ** each[MIDDLE] for each in medians]):.2f}",
            "by agent": f"{min(slopes):.2f} to {max(slopes):.2f}",
            "theory": f"{bits_per_candidate(numbers, theory):.2f}" if theory else "–",
        }
        for name, cell in cells.items():
            columns.setdefault(name, []).append(cell)
    return columns


def _deciles(seeds: Sequence[Figures]) -> list[list[float]]:
    """Return deciles of log10 error by number of candidates, as means over seeds."""
    by_number = zip(*(figures["log10_error_deciles"] for figures in seeds), strict=True)
    return [[fmean(values) for values in zip(*each, strict=True)] for each in by_number]


def _run_columns(runs: Runs, learned: Mapping[str, Mapping[int, Figures]]) -> Columns:
    def each(cell: Callable[[Mapping[int, Figures]], str]) -> list[str]:
        return [cell(by_seed) for by_seed in learned.values()]

    def shares(key: str) -> list[str]:
        return where_unlike(each(lambda by_seed: percent(_mean(by_seed.values(), key))))

    columns = {
        "variant": list(learned),
        "personal": each(lambda by_seed: _spread([figures["accuracy_personal"] for figures in by_seed.values()])),
        "gain": each(lambda by_seed: _gain(by_seed, learned.get(runs.against or "", {}))),
        "worst": each(lambda by_seed: percent(_mean(by_seed.values(), "accuracy_worst"))),
        "global": each(lambda by_seed: percent(_mean(by_seed.values(), "accuracy_global"))),
    }
    for round_ in runs.at:
        columns[f"at {round_}"] = each(lambda by_seed, at=round_: percent(_at(by_seed.values(), at)))  # type: ignore[misc]
    for kind in _kinds(learned):
        columns[kind] = each(lambda by_seed, of=kind: percent(_of_kind(by_seed.values(), of)))  # type: ignore[misc]
    columns |= {
        "messages": each(lambda by_seed: amount(_mean(by_seed.values(), "message_bytes"))),
        "virtual time": where_unlike(each(lambda by_seed: f"{_mean(by_seed.values(), 'virtual_seconds') or 0:.2f} s")),
        "bits": each(lambda by_seed: f"{_mean(by_seed.values(), 'payload_bits_per_weight') or 0:.3f}"),
        "weights kept": shares("weights_kept"),
        "filters left": shares("filters_left"),
    }
    for name, points in runs.published.items():
        for column, cells in columns.items():
            told = column.removeprefix("at ")
            cells.append(name if column == "variant" else percent(points.get(int(told))) if told.isdigit() else "")
    return columns


def _spread(values: Sequence[float], *, signed: bool = False) -> str:
    """Write the mean of shares, and their standard deviation if there are several."""
    mean = f"{100 * fmean(values):{'+' if signed else ''}.1f}"
    return f"{mean} ± {100 * stdev(values):.1f}" if len(values) > 1 else mean


def _gain(mine: Mapping[int, Figures], other: Mapping[int, Figures]) -> str:
    """Write by how much a variant is above another in the seeds that both have."""
    gains = [mine[seed]["accuracy_personal"] - other[seed]["accuracy_personal"] for seed in mine if seed in other]
    return _spread(gains, signed=True) if gains and mine is not other else ""


def _mean(seeds: Any, key: str) -> float | None:
    values = [figures[key] for figures in seeds if figures.get(key) is not None]
    return fmean(values) if values else None


def _at(seeds: Any, rounds: int) -> float | None:
    """Return the mean accuracy after a number of rounds; None if it was not evaluated then."""
    values = [share for figures in seeds for number, _, share in figures["curve"] if number == rounds - 1]
    return fmean(values) if values else None


def _kinds(learned: Mapping[str, Mapping[int, Figures]]) -> list[str]:
    """Return the kinds of device, if a variant has several."""
    kinds = [
        [peer["kind"] for peer in figures["peers"]] for by_seed in learned.values() for figures in by_seed.values()
    ]
    return list(dict.fromkeys(kind for of_run in kinds if len(set(of_run)) > 1 for kind in of_run))


def _of_kind(seeds: Any, kind: str) -> float | None:
    values = [peer["accuracy_personal"] for figures in seeds for peer in figures["peers"] if peer["kind"] == kind]
    told = [value for value in values if value is not None]
    return fmean(told) if told else None


# --- files ----------------------------------------------------------------------------------------------------------


def as_json(plan: Plan, done: Sequence[Done]) -> dict[str, Any]:
    """Return everything, as ``--json`` prints it."""
    cells = [{"variant": each.cell.variant, "seed": each.cell.seed, **each.figures} for each in done]
    return {"plan": plan.model_dump(mode="json"), "cells": cells}


def write(plan: Plan, done: Sequence[Done], folder: Path) -> None:
    """Write ``runs.csv`` and ``sums.csv``, a row for each cell, and ``tables.md``; raises OutputError."""
    everything = as_json(plan, done)
    for name, having in (("runs", "curve"), ("sums", "drawn")):
        if rows := [cell for cell in everything["cells"] if having in cell]:
            results.write(folder, name, {"plan": everything["plan"], "cells": rows}, rows)
    lines = [f"# {plan.title}", "", plan.question, "", *_origin(done), "", "![figure](figure.png)", ""]
    for title, columns, _, note in _sheets(plan, done):
        shown = {name: cells for name, cells in columns.items() if any(cells)}
        rows = [list(shown), ["---", *["---:"] * (len(shown) - 1)], *zip(*shown.values(), strict=True)]
        lines += [f"**{title}**", "", *("| " + " | ".join(row) + " |" for row in rows), "", note, ""]
    try:
        (folder / "tables.md").write_text("\n".join(lines), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}") from None


def _origin(done: Sequence[Done]) -> list[str]:
    """Say by which command, when, with which seeds and on what the cells were measured."""
    records = [each.record for each in done]
    days = sorted(record["date"][:10] for record in records)
    when = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    commands, machines, versions = (
        list(dict.fromkeys(record[key] for record in records)) for key in ("command", "machine", "dslth")
    )
    seeds = ", ".join(map(str, dict.fromkeys(each.cell.seed for each in done)))
    return [
        f"`{'`, `'.join(commands)}`, dslth {', '.join(versions)}, {when}, seeds {seeds}, {len(done)} cells.",
        f"{'; '.join(machines)}.",
    ]


def plot(plan: Plan, done: Sequence[Done], folder: Path) -> bool:
    """Draw ``figure.png``; False, and nothing drawn, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    summed, learned = _by_variant(done, "drawn"), _by_variant(done, "curve")
    masks = list(dict.fromkeys(next(iter(by_seed.values()))["mask"] for by_seed in summed.values()))
    panels = len(masks) + bool(learned)
    picture = Figure(figsize=(1.5 + 5 * panels, 4.5), layout="constrained")
    for number, mask in enumerate(masks, 1):
        axes = picture.add_subplot(1, panels, number, title=f"masks {mask}", xlabel="candidates n")
        axes.set_ylabel("log10 error of a target weight")
        _draw_sums(axes, [seeds for seeds in summed.values() if next(iter(seeds.values()))["mask"] == mask])
    if plan.runs and learned:
        axes = picture.add_subplot(1, panels, panels, ylabel="mean personal accuracy")
        (_draw_over if plan.runs.over else _draw_rounds)(axes, plan.runs, learned)
    for axes in picture.axes:
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    picture.savefig(folder / "figure.png", dpi=120)
    return True


def _draw_sums(axes: "Axes", summed: Sequence[Mapping[int, Figures]]) -> None:
    """Draw medians with the band from the first to the last decile, and what counting predicts."""
    for colour, by_seed in enumerate(summed):
        first, by_number = next(iter(by_seed.values())), _deciles(list(by_seed.values()))
        numbers, drawn = first["candidates"], first["drawn"]
        axes.plot(numbers, [each[MIDDLE] for each in by_number], f"C{colour}.-", label=drawn)
        low, high = [each[0] for each in by_number], [each[-1] for each in by_number]
        axes.fill_between(numbers, low, high, color=f"C{colour}", alpha=0.15, linewidth=0)
        counted = [counting(drawn, first["mask"], n) for n in numbers]
        theory = [log10(error) for error in counted if error is not None]
        if theory:
            axes.plot(numbers, theory, f"C{colour}--", linewidth=1, label=f"{drawn}, by counting")


def _draw_rounds(axes: "Axes", runs: Runs, learned: Mapping[str, Mapping[int, Figures]]) -> None:
    """Draw accuracy over rounds, a band from the least to the most of the seeds, and the published points."""
    axes.set_xlabel("rounds")
    axes.locator_params(axis="x", integer=True)
    for colour, (name, by_seed) in enumerate(learned.items()):
        curves = [{number + 1: share for number, _, share in figures["curve"]} for figures in by_seed.values()]
        rounds = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = [[curve[number] for curve in curves] for number in rounds]
        axes.plot(rounds, [*map(fmean, values)], color=f"C{colour}", label=name)
        axes.fill_between(rounds, [*map(min, values)], [*map(max, values)], color=f"C{colour}", alpha=0.15, linewidth=0)
    for name, points in runs.published.items():
        axes.plot(list(points), list(points.values()), "kx", label=name)


def _draw_over(axes: "Axes", runs: Runs, learned: Mapping[str, Mapping[int, Figures]]) -> None:
    """Draw final accuracy over the variants' numbers, a line for those of one ``line``, a mark for each seed."""
    axes.set_xlabel(runs.over)
    lines: dict[str, dict[float, list[float]]] = {}
    for name, by_seed in learned.items():
        variant = runs.variants[name]
        ends = [figures["accuracy_personal"] for figures in by_seed.values()]
        lines.setdefault(variant.line, {})[variant.x or 0.0] = ends
    for colour, (name, points) in enumerate(lines.items()):
        axes.plot(list(points), [*map(fmean, points.values())], color=f"C{colour}", label=name)
        for x, ends in points.items():
            axes.plot([x] * len(ends), ends, f"C{colour}.", markersize=4)
