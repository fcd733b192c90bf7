"""A study's tables and pictures, made from its finished cells alone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from textwrap import fill
from typing import Any, NamedTuple

from dslth import files
from dslth.bench.study.plan import Part
from dslth.bench.study.work import Standing, Study
from dslth.bench.theirs import Theirs
from dslth.bench.tuning import words
from dslth.errors import OutputError
from dslth.show.tables import Fitted
from dslth.show.words import amount

__all__ = ["as_json", "tables", "write"]

Columns = Mapping[str, Callable[[Standing], str]]

WIDTH = 120
"""Characters of a line of text in Markdown."""


class _Sheet(NamedTuple):
    title: str
    cells: Mapping[str, list[str]]
    spare: Sequence[str]
    note: str


STEPS = (
    "All rows take the same gradient steps on the same batches. Accuracy is each peer's on test samples of its own "
    "classes at the end: mean over peers, its mean and standard deviation over seeds († one seed only), and the worst "
    "peer's, mean over seeds; * taken before the exchange, where tuning found that better. Message bytes of all peers, "
    "mean over seeds. Values as tuned, in so many runs; a rate that was best at an end of its grid was tried further."
)
BYTES = (
    "Accuracy of the last evaluated round up to which all peers together had sent so many message bytes; – where the "
    "first one costs more."
)


def _spread(values: Sequence[float]) -> str:
    """Write a mean and a standard deviation, of shares."""
    if len(values) == 1:
        return f"{100 * values[0]:.1f} % †"
    return f"{100 * fmean(values):.1f} ± {100 * stdev(values):.1f} %"


def _figures(standing: Standing, name: str) -> list[Any]:
    return [result.figures[name] for result in standing.results]


def _name(standing: Standing) -> str:
    before = standing.results[0].figures["evaluated"] == "before exchange"
    return f"{standing.row}*" if before else standing.row


def _steps() -> Columns:
    return {
        "row": _name,
        "accuracy": lambda s: _spread(_figures(s, "accuracy_personal")),
        "worst peer": lambda s: f"{100 * fmean(_figures(s, 'accuracy_worst')):.1f} %",
        "messages": lambda s: amount(fmean(_figures(s, "message_bytes"))),
        "seeds": lambda s: str(len(s.results)),
        "values": lambda s: words(s.results[0].values) or "–",
        "runs": lambda s: str(s.effort),
    }


def _budgets(part: Part) -> Columns:
    def within(budget: int) -> Callable[[Standing], str]:
        def cell(standing: Standing) -> str:
            reached = [[share for _, sent, share in curve if sent <= budget] for curve in _figures(standing, "curve")]
            return _spread([shares[-1] for shares in reached]) if all(reached) else "–"

        return cell

    return {"row": _name} | {amount(budget): within(budget) for budget in part.budgets}


def _of(standings: Sequence[Standing], part: str) -> list[Standing]:
    """Return a part's rows that have a result, the best first."""
    found = [each for each in standings if each.part == part and each.results]
    return sorted(found, key=lambda each: -fmean(_figures(each, "accuracy_personal")))


def _missing(standings: Sequence[Standing], part: str) -> list[str]:
    """Say of each row of a part what of it was not run."""
    lacking = []
    for each in standings:
        if each.part == part and each.done < each.all:
            trials = f"{each.tried} of {each.effort} tuning runs, " if each.tried < each.effort else ""
            lacking.append(f"{each.row} ({trials}{len(each.results)} of {len(each.seeds)} seeds)")
    return lacking


def _sheets(study: Study, rows: Sequence[Standing], part: str, others: Sequence[Theirs]) -> list[_Sheet]:
    settings, rounds = study.plan.parts[part], study.runs[part][0].experiment.rounds
    how = (
        f"{STEPS} {rounds} rounds; tuning runs of {settings.tuning_rounds}, in which each peer holds out "
        f"{100 * study.plan.validation:g} % of its training samples and is evaluated on those."
    )
    theirs = [
        {
            "row": each.name,
            "accuracy": _spread([*each.accuracy.values()]),
            "messages": amount(each.message_bytes),
            "seeds": str(len(each.accuracy)),
        }
        for each in others
    ]
    steps = {
        name: [cell(each) for each in rows] + [known.get(name, "–") for known in theirs]
        for name, cell in _steps().items()
    }
    spent = {name: [cell(each) for each in rows] for name, cell in _budgets(settings).items()}
    return [
        _Sheet("equal steps", steps, ("runs", "seeds", "values", "worst peer"), how),
        _Sheet("equal bytes", spent, tuple(spent)[1:-1], BYTES),
    ]


def _of_part(study: Study, part: str, others: Sequence[Theirs]) -> list[Theirs]:
    """Return what others reached on a part's topology."""
    return [each for each in others if each.topology == Path(study.plan.parts[part].topology).stem]


def _said(standings: Sequence[Standing], part: str, others: Sequence[Theirs]) -> list[str]:
    """Say what is missing, when, where and how the rest was measured, and whose the figures of others are."""
    lacking = _missing(standings, part)
    lines = [f"Not finished: {', '.join(lacking)}."] if lacking else []
    records = [result.record for each in standings if each.part == part for result in each.results]
    if records:
        days = sorted({record["date"][:10] for record in records})
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        where = "; ".join(sorted({record["machine"] for record in records}))
        how = ", ".join(sorted({f"`{record['command']}`" for record in records}))
        lines.append(f"Measured {when} by {how}, dslth {records[-1]['dslth']}, on {where}.")
    return lines + [each.note for each in others]


def tables(study: Study, standings: Sequence[Standing], others: Sequence[Theirs] = ()) -> list[Fitted]:
    """Show each part's two tables on a terminal, the first with figures of others too."""
    shown = []
    for part in study.plan.parts:
        theirs = _of_part(study, part, others)
        rows, lines = _of(standings, part), " ".join(_said(standings, part, theirs))
        for sheet in _sheets(study, rows, part, theirs) if rows else []:
            note = f"{sheet.note} {lines}"
            shown.append(Fitted(f"{part}: {sheet.title}", sheet.cells, spare=sheet.spare, note=note))
    return shown


def as_json(study: Study, standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """Return every row of every part, with the finished cells of its seeds as they are kept."""
    return [
        {
            "part": each.part,
            "row": each.row,
            "tuning_runs": [each.tried, each.effort],
            "seeds": list(each.seeds),
            "results": [dict(result.record) for result in each.results],
        }
        for each in standings
    ]


def write(study: Study, standings: Sequence[Standing], folder: Path, others: Sequence[Theirs] = ()) -> bool:
    """Write ``tables.md`` and ``frontier.png`` of each part; False, and no picture, without matplotlib.

    Raises OutputError.
    """
    drawn = True
    for part in study.plan.parts:
        rows, theirs = _of(standings, part), _of_part(study, part, others)
        lines = [f"# {part}: {study.plan.parts[part].topology}", ""]
        for sheet in _sheets(study, rows, part, theirs) if rows else []:
            cells = [list(sheet.cells), ["---", *["---:"] * (len(sheet.cells) - 1)]]
            cells += map(list, zip(*sheet.cells.values(), strict=True))
            lines += [f"## {sheet.title.capitalize()}", "", *("| " + " | ".join(row) + " |" for row in cells), ""]
            lines += [fill(sheet.note, WIDTH), ""]
        lines += [
            line for said in _said(standings, part, theirs) for line in (fill(said, WIDTH, break_on_hyphens=False), "")
        ]
        lines += ["![accuracy against message bytes](frontier.png)", ""] if rows else []
        file = folder / part / "tables.md"
        try:
            files.replace(file, "\n".join(lines).encode())
        except OSError as error:
            raise OutputError(f"cannot write {file}: {error.strerror}; choose another folder with --out") from None
        if rows:
            drawn = _frontier(rows, [*study.plan.rows], folder / part / "frontier.png") and drawn
    return drawn


def _frontier(rows: Sequence[Standing], names: Sequence[str], file: Path) -> bool:
    """Draw accuracy against message bytes: a curve for each row, with a band between its seeds.

    ``names`` of all rows give a row the same colour in each picture.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError:
        return False
    picture = Figure(figsize=(9, 5.5), layout="constrained")
    axes = picture.add_subplot(xscale="log", xlabel="message bytes sent by all peers", ylabel="mean personal accuracy")
    for each in rows:
        label = each.row + " †" * (len(each.results) == 1)
        style: dict[str, Any] = {"color": colormaps["tab20"](names.index(each.row)), "label": label}
        rounds = [*zip(*_figures(each, "curve"), strict=True)]
        if each.results[0].figures["evaluated"] == "before exchange" and len(rounds) > 1 and not rounds[0][0][0]:
            del rounds[0]  # before the first exchange there were hellos only
        points = [
            (fmean(sent), fmean(shares), min(shares), max(shares))
            for _, sent, shares in (zip(*of_seeds, strict=True) for of_seeds in rounds)
        ]
        if any(_figures(each, "message_bytes")):
            sent, means, least, most = zip(*points, strict=True)
            axes.plot(sent, means, marker=".", markersize=4, **style)
            axes.fill_between(sent, least, most, color=style["color"], alpha=0.15, linewidth=0)
        else:
            ends = _figures(each, "accuracy_personal")
            axes.axhline(fmean(ends), linestyle=":", **style | {"label": f"{label} (nothing sent)"})
            axes.axhspan(min(ends), max(ends), color=style["color"], alpha=0.1, linewidth=0)
    axes.grid(visible=True, alpha=0.3)
    axes.margins(x=0.02)
    picture.legend(loc="outside right upper", fontsize=8, frameon=False, title="† one seed")
    picture.savefig(file, dpi=130, metadata={"Software": None})
    return True
