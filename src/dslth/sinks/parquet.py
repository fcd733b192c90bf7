"""Parquet: the tables of a run, rounds and links, written when it ends."""

from pathlib import Path

from dslth import files
from dslth.errors import DslthError, OutputError
from dslth.runs import frames
from dslth.runs.events import Event
from dslth.runs.folder import RunFolder
from dslth.runs.summary import rounds_of
from dslth.sinks.base import About

__all__ = ["Parquet"]


class Parquet:
    """Writes ``rounds.parquet`` and ``links.parquet`` into the folder ``where``, by default the run folder."""

    def __init__(self, where: str | None, run: About) -> None:
        try:
            import pandas as pd  # noqa: F401  (missed now, not when the run ends)
            import pyarrow as pa  # noqa: F401
        except ImportError:
            raise DslthError("sink parquet takes libraries: pip install 'dslth[tables]'") from None
        self._place = Path(where) if where else run.folder
        try:
            self._place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"sink parquet={where}: {error.strerror}; name a folder that can be written") from None
        self._run = RunFolder(run.folder)

    def emit(self, event: Event) -> None:
        """Do nothing: the run folder keeps all reports, also those from before a run was resumed."""

    def close(self) -> None:
        """Write the tables, whole or not at all."""
        reports = [report for events in self._run.events().values() for report in rounds_of(events)]
        tables = {
            "rounds": frames.frame(frames.rounds(reports), ["peer", "round"]),
            "links": frames.frame(frames.links(reports), ["peer", "round", "neighbour"]),
        }
        for name, table in tables.items():
            files.replace(self._place / f"{name}.parquet", table.to_parquet(index=False))
