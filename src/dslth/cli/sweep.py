"""``dslth sweep``: a topology with every combination of some settings, each with every seed."""

import re
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from dslth import config
from dslth.cli import experiment, options
from dslth.cli.options import JsonOption, TopologyArgument
from dslth.errors import ConfigError

__all__ = ["sweep"]

MOST_CELLS = 10_000
NAME = 40
"""Characters of a combination's name, at most."""


def sweep(
    topology_file: TopologyArgument,
    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=A,B,C", help="Values of a setting, as in algorithm.lr=0.1,0.3; repeat."),
    ],
    seeds: Annotated[str, typer.Option(metavar="A..B", help="Seeds, as in 1..5 or 1,4,9.")] = "1..3",
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to write or go on with [default: runs/sweep-NAME]."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run every combination of settings with every seed, in virtual time, side by side; print mean and spread of each.

    It can be interrupted: called again, it goes on with the runs that are not finished, or whose settings changed.
    Accuracies are those on test samples: to choose settings by them, hold samples out with --set data.validation=0.1.
    """
    from dslth.bench.experiments.plan import Plan, Runs, Variant

    tried = [config.assigned(text) for text in set_]
    if any(keys == ("experiment", "seed") for keys, _ in tried):
        raise ConfigError("--set experiment.seed: the seeds of a sweep are those of --seeds")
    numbers = _seeds(seeds)
    variants: dict[str, Variant] = {}
    for values in product(*(found for _, found in tried)):
        settings: dict[str, Any] = {}
        for (keys, _), value in zip(tried, values, strict=True):
            settings = config.merge(settings, options.nested(keys, value))
        name = _name([keys[-1] for keys, _ in tried], values, [len(v) > 1 for _, v in tried], len(variants))
        name = name if name not in variants else f"combination {len(variants) + 1}"
        variants[name] = Variant(settings=settings)
    if len(variants) * len(numbers) > MOST_CELLS:
        raise ConfigError(f"--set and --seeds: {len(variants) * len(numbers):,} runs; {MOST_CELLS:,} at the most")
    stem = Path(topology_file).stem
    question = f"{stem} with {'; '.join(set_)}"
    plan = Plan(
        title=f"sweep of {stem}", question=question, seeds=numbers, runs=Runs(topology=topology_file, variants=variants)
    )
    told = f"dslth sweep {topology_file} {' '.join(f'--set {text}' for text in set_)} --seeds {seeds}"
    experiment.do(plan, {}, out_dir or Path("runs") / f"sweep-{stem}", told, as_json=as_json)


def _name(keys: list[str], values: tuple[Any, ...], several: list[bool], number: int) -> str:
    """Name a combination by those of its values that vary, with their keys if there is room; else by its number."""
    varied = [(key, value) for key, value, more in zip(keys, values, several, strict=True) if more]
    for words in (" ".join(f"{key} {value}" for key, value in varied), " ".join(str(value) for _, value in varied)):
        name = re.sub(r"[^A-Za-z0-9.+-]+", " ", words).strip(" -")
        if 0 < len(name) <= NAME:
            return name
    return f"combination {number + 1}"


def _seeds(text: str) -> tuple[int, ...]:
    first, dots, last = text.partition("..")
    try:
        found = tuple(range(int(first), int(last) + 1)) if dots else tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 0 or len(found) > MOST_CELLS:
        raise ConfigError(f"--seeds {text[:40]!r}: expected whole numbers, as in 1..5 or 1,4,9")
    return found
