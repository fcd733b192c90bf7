"""Where a peer's reports go: first to its own file, then to others that follow the run."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from dslth.errors import OutputError
from dslth.runs.events import Event
from dslth.terminal import say

__all__ = ["Call", "JsonLines", "Sink"]


class Sink(Protocol):
    """A destination of reports; it never fails and never waits."""

    def emit(self, event: Event) -> None:
        """Take a report."""

    def close(self) -> None:
        """Release what is held."""


class JsonLines:
    """Writes each report to a file at once, as a line; raises OutputError if the file cannot be opened.

    ``append``: the file is continued. If the disk fills up later, that is reported once, and learning continues.
    """

    def __init__(self, path: Path, *, append: bool = False) -> None:
        self._path, self._broken = path, False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():  # opening a pipe would wait
                raise OSError(errno.EINVAL, "not a regular file")
            torn = append and path.is_file() and not path.read_bytes().endswith(b"\n")
            self._file = path.open("a" if append else "w", encoding="utf-8", buffering=1)
            if torn:
                self._file.write("\n")  # an incomplete last line stays a line of its own
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}; choose another folder with --out") from None

    def emit(self, event: Event) -> None:
        try:
            self._file.write(event.model_dump_json() + "\n")
        except OSError as error:
            if not self._broken:
                say(f"dslth: {self._path}: {error.strerror}; reports are lost, learning continues")
            self._broken = True

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:
            self._broken = True


class Call:
    """Passes each report to a function."""

    def __init__(self, function: Callable[[Event], None]) -> None:
        self._function = function

    def emit(self, event: Event) -> None:
        self._function(event)

    def close(self) -> None:
        pass
