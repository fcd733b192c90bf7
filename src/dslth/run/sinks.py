"""Where a peer's reports go: its own file first, then whoever listens."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from dslth.errors import OutputError
from dslth.run.events import Event
from dslth.terminal import say

__all__ = ["Call", "JsonLines", "Sink"]


class Sink(Protocol):
    """Somewhere that reports go; it never fails and never waits."""

    def emit(self, event: Event) -> None:
        """Take a report."""

    def close(self) -> None:
        """Let go of what is held."""


class JsonLines:
    """One line a report in a file, there at once for whoever follows it; OutputError where it cannot be opened.

    ``append``: the file goes on where it ends. A disk that fills up later is said once, and learning goes on.
    """

    def __init__(self, path: Path, *, append: bool = False) -> None:
        self._path, self._broken = path, False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():  # a pipe would be waited for
                raise OSError(errno.EINVAL, "it is no file")
            torn = append and path.is_file() and not path.read_bytes().endswith(b"\n")
            self._file = path.open("a" if append else "w", encoding="utf-8", buffering=1)
            if torn:
                self._file.write("\n")  # what was cut off stays a line of its own
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}; choose another folder with --out") from None

    def emit(self, event: Event) -> None:
        try:
            self._file.write(event.model_dump_json() + "\n")
        except OSError as error:
            if not self._broken:
                say(f"dslth: {self._path}: {error.strerror}; reports are lost, learning goes on")
            self._broken = True

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:
            self._broken = True


class Call:
    """Hands each report to a function of this process."""

    def __init__(self, function: Callable[[Event], None]) -> None:
        self._function = function

    def emit(self, event: Event) -> None:
        self._function(event)

    def close(self) -> None:
        pass
