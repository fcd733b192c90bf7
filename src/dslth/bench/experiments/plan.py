"""What the file of an experiment may say: runs of a topology with changed settings, sums of subsets, or both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from dslth import config
from dslth.bench.experiments.subsets import SubsetSums
from dslth.config import Settings

__all__ = ["Plan", "Quick", "Runs", "Variant", "read"]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9.+][A-Za-z0-9.+ -]{0,39}$")]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)]


class Variant(Settings):
    """One way to do the run.

    ``row`` is a row of ``dslth bench comm``, or ``masks`` for what ``dslth run`` does. ``settings`` are keys of a
    topology file that win over the plan's. ``x`` and ``line`` are its place in a figure over numbers.
    """

    row: str = "masks"
    settings: Mapping[str, Any] = {}
    x: float | None = None
    line: str = ""


class Quick(Settings):
    """What a quick look changes: it plays the first seed only, these variants (none: all), and these settings."""

    variants: tuple[str, ...] = ()
    settings: Mapping[str, Any] = {}


class Runs(Settings):
    """Runs of one topology: each variant with each seed.

    ``settings`` are those of all variants. ``against`` names the variant that the others are compared with, seed by
    seed. ``at`` are numbers of rounds whose accuracies the table shows. The figure is over rounds, or, with a label
    ``over``, over the variants' ``x``, with a line each for those of one ``line``. ``published`` are figures of others,
    accuracy by number of rounds.
    """

    topology: str
    settings: Mapping[str, Any] = {}
    variants: Annotated[Mapping[Name, Variant], Field(min_length=1)]
    against: str | None = None
    at: tuple[Annotated[int, Field(ge=1)], ...] = ()
    over: str = ""
    published: Mapping[str, Mapping[int, float]] = {}
    quick: Quick = Quick()

    @model_validator(mode="after")
    def _named(self) -> "Runs":
        for name in (*([self.against] if self.against else []), *self.quick.variants):
            if name not in self.variants:
                raise ValueError(f"there is no variant {name[:40]!r}")
        if self.over and any(variant.x is None for variant in self.variants.values()):
            raise ValueError("a figure over numbers needs an x of each variant")
        return self


class Plan(Settings):
    """An experiment: its question in a line, its seeds, and what is measured."""

    title: str
    question: str
    seeds: Seeds = (1, 2, 3)
    sums: SubsetSums | None = None
    quick_sums: SubsetSums | None = None
    runs: Runs | None = None

    @model_validator(mode="after")
    def _something(self) -> "Plan":
        if self.sums is None and self.runs is None:
            raise ValueError("an experiment has runs, or sums")
        return self

    def quickly(self) -> "Plan":
        """Return what takes seconds in place of minutes."""
        runs = self.runs
        if runs:
            chosen = {name: runs.variants[name] for name in runs.quick.variants or runs.variants}
            settings = config.merge(runs.settings, runs.quick.settings)
            against = runs.against if runs.against in chosen else None
            runs = runs.model_copy(update={"variants": chosen, "settings": settings, "against": against})
        return self.model_copy(update={"seeds": self.seeds[:1], "sums": self.quick_sums, "runs": runs})


def read(path: Path | str) -> Plan:
    """Read an experiment by its path or by the name of a shipped one; raises MissingFileError and ConfigError."""
    return config.read(path, "experiments", "experiment", Plan)
