"""Long measurements in cells: each finished one is a file, and what is finished is not done again."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dslth import files
from dslth.config import RunConfig
from dslth.errors import OutputError
from dslth.topology import Topology

__all__ = ["Cells", "told"]

KEYS = ("settings", "figures", "command", "date", "machine", "dslth")
"""Of a cell; the last four say by which command, when, on what, and with which version it was measured."""
MOST_BYTES = 64 << 20


class Cells:
    """A folder of finished cells, one JSON file each: its settings, what was measured, when, where and by what.

    A cell counts as finished while its settings are those that are asked for: with others it is done again.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self._folder, self._command = folder, command

    def finished(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return a finished cell; None if there is none with these settings, or it is not whole."""
        try:
            cell: dict[str, Any] = json.loads(files.read(self._file(name), MOST_BYTES))
            same = cell["settings"] == _plain(settings) and cell.keys() == set(KEYS)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cell if same else None

    def finish(
        self, name: str, settings: Mapping[str, Any], figures: Mapping[str, Any], machine: str
    ) -> dict[str, Any]:
        """Keep a cell, whole or not at all; return it as it will be read. Raises OutputError."""
        told = (settings, figures, self._command, datetime.now(UTC).isoformat(timespec="seconds"), machine)
        cell = _plain(dict(zip(KEYS, (*told, version("dslth")), strict=True)))
        file = self._file(name)
        try:
            files.replace(file, (json.dumps(cell, separators=(",", ":")) + "\n").encode())
        except OSError as error:
            raise OutputError(f"cannot write {file}: {error.strerror}; choose another folder with --out") from None
        return cell

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def told(run: RunConfig, graph: Topology) -> dict[str, Any]:
    """Return all that a run's figures depend on; where its data lie is left out, as is what has its default.

    So a setting that is added to dslth later, and is off, leaves finished cells as they are.
    """
    settings = run.model_dump(mode="json", exclude_defaults=True)
    if "folder" in (data := settings["experiment"].get("data", {})):
        del data["folder"]
        if not data:
            del settings["experiment"]["data"]
    return settings | {"graph": graph.digest}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON gives them back: no tuples, keys as words."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain
