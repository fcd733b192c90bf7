"""Figures that other people's code reached on exactly a run's data: read, kept beside our own, and marked as theirs.

The file is a JSON list, see ``Theirs`` and docs/communication.md; ``dslth bench export`` writes the data to them.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from dslth import files
from dslth.errors import ConfigError, MissingFileError, OutputError

__all__ = ["KEPT", "Theirs", "keep", "kept", "read"]

KEPT = "theirs.json"
"""The file of a results folder that has what was imported into it."""
MOST_BYTES = 1 << 20


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it must be one line that can be printed")
    return text


Line = Annotated[str, StringConstraints(min_length=1, max_length=500), AfterValidator(_printable)]


class Theirs(BaseModel):
    """What one method of theirs reached on the data of a topology file.

    ``accuracy`` has the mean personal accuracy at the end, 0 to 1, by the run's seed. ``message_bytes`` are those that
    all peers send in a run, mean over seeds; null if nobody counted them. ``source`` is the code and its version,
    ``command`` how it was run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Annotated[str, StringConstraints(pattern=r"^[\w.+-]{1,40}$")]
    topology: Line
    accuracy: Annotated[dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)]
    message_bytes: Annotated[int, Field(ge=0, strict=True)] | None = None
    source: Line
    command: Line

    @property
    def name(self) -> str:
        """The method's name, marked as theirs."""
        return f"{self.method} (theirs)"

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds."""
        return fmean(self.accuracy.values())

    @property
    def note(self) -> str:
        """Where the figures come from, as a sentence."""
        seeds = f"seed{'s' * (len(self.accuracy) > 1)} {', '.join(map(str, sorted(self.accuracy)))}"
        return f"{self.name}: not measured by dslth, but told by others ({self.source}; {self.command}; {seeds})."


_list = TypeAdapter(tuple[Theirs, ...])


def read(path: Path) -> tuple[Theirs, ...]:
    """Read a file of figures; raises MissingFileError, or ConfigError that says what is wrong."""
    try:
        figures = _list.validate_json(files.read(path, MOST_BYTES))
    except OSError as error:
        raise MissingFileError(f"{path}: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(f"{part!s:.60}" for part in first["loc"]) or "the file"
        text = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {_shown(where)}: {_shown(text)}") from None
    if len({(each.topology, each.method) for each in figures}) < len(figures):
        raise ConfigError(f"{path}: a method has one entry for each topology; there are two of one")
    return figures


def _shown(text: str) -> str:
    return text if text.isprintable() else repr(text)


def kept(folder: Path) -> tuple[Theirs, ...]:
    """Return what was imported into a results folder, nothing if nothing was; raises as ``read`` does."""
    return read(folder / KEPT) if (folder / KEPT).exists() else ()


def keep(figures: Iterable[Theirs], folder: Path) -> Sequence[Theirs]:
    """Keep figures in a results folder, in place of what it has of the same method and topology; return all it has.

    Raises OutputError, and ConfigError if what is there is damaged.
    """
    known = {(each.topology, each.method): each for each in (*kept(folder), *figures)}
    everything = [known[key] for key in sorted(known)]
    text = json.dumps([each.model_dump(mode="json") for each in everything], indent=1, ensure_ascii=False) + "\n"
    try:
        files.replace(folder / KEPT, text.encode())
    except OSError as error:
        raise OutputError(f"cannot write {folder / KEPT}: {error.strerror}") from None
    return everything
