"""What the file of a study may say."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dslth import config
from dslth.bench.tuning import VALIDATION
from dslth.config import Settings
from dslth.errors import ConfigError

__all__ = ["Part", "Plan", "read"]

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Whole = Annotated[int, Field(ge=1, le=2**63)]


class Part(Settings):
    """One data set and topology. ``settings`` are keys of its topology file that win over the file's.

    ``tuning_rounds``: how long the runs are by which values are chosen, of all rows alike. ``budgets``: message bytes
    of all peers together, after which accuracies are compared.
    """

    topology: str
    settings: Mapping[str, Any] = {}
    tuning_rounds: Whole
    budgets: Annotated[tuple[Whole, ...], Field(min_length=1)]


class Plan(Settings):
    """Parts, and the rows of ``dslth bench comm`` that each of them has, with the seeds of each row.

    Values are chosen once, by runs with ``tuning_seed`` in which peers hold out a share ``validation``.
    """

    parts: Annotated[Mapping[Name, Part], Field(min_length=1)]
    rows: Annotated[Mapping[str, Annotated[tuple[Seed, ...], Field(min_length=1)]], Field(min_length=1)]
    tuning_seed: Seed = 1
    validation: Annotated[float, Field(gt=0, lt=1)] = VALIDATION

    def chosen(self, only: Sequence[str]) -> tuple[set[str], set[str]]:
        """Return the parts and the rows that are named, all where none is; raises ConfigError for another name."""
        if unknown := [name for name in only if name not in self.parts and name not in self.rows]:
            raise ConfigError(f"--only: there is no {unknown[0]!r}; there are {', '.join([*self.parts, *self.rows])}")
        return {*self.parts} & {*only} or {*self.parts}, {*self.rows} & {*only} or {*self.rows}


def read(path: Path | str) -> Plan:
    """Read a study's file, by its path or the name of one that comes with dslth.

    Raises MissingFileError, ConfigError.
    """
    return config.read(path, "studies", "study", Plan)
