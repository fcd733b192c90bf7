"""A run folder: what a run leaves on disk, file by file.

::

    manifest.json            versions, seed, digest of the graph, command
    topology.yaml            the topology file as resolved; runs again as it is
    peers/peer-3.jsonl       reports of peer 3, a line each: joined, rounds, finished
    tickets/peer-3.safetensors   its personal model: seed, model name, shapes, packed mask
    checkpoints/peer-3/          what it needs to go on after a crash, the last two
    launcher.jsonl           which peers died and were started again
    summary.json             the figures of the run
"""

import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dslth.config import RunConfig
from dslth.errors import MissingFileError, OutputError
from dslth.events import Event, Noticed, parse
from dslth.topology import Topology

__all__ = ["RunFolder"]

VERSIONS_OF = ("dslth", "torch", "numpy", "pyzmq", "bitarray")


class RunFolder:
    """The paths of a run folder, and how its files are read and written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def fresh(cls, topology: str) -> "RunFolder":
        """Name a folder under ``runs/`` by topology and time."""
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        name = Path("runs") / f"{Path(topology).stem}-{stamp}"
        tries = [name, *(Path(f"{name}-{i}") for i in range(2, 100))]
        for path in tries:
            try:
                path.mkdir(parents=True)  # claimed at once: two runs may start in the same second
            except FileExistsError:
                continue
            except OSError as error:
                raise OutputError(f"cannot make {path}: {error.strerror}; choose another folder with --out") from None
            return cls(path)
        raise OutputError(f"there are {len(tries)} folders like {name}; choose another with --out")

    def reports(self, peer: int) -> Path:
        """Where a peer's reports go."""
        return self.path / "peers" / f"peer-{peer}.jsonl"

    def ticket(self, peer: int) -> Path:
        """Where a peer's ticket goes."""
        return self.path / "tickets" / f"peer-{peer}.safetensors"

    def checkpoints(self, peer: int) -> Path:
        """Where a peer's checkpoints go."""
        return self.path / "checkpoints" / f"peer-{peer}"

    @property
    def happenings(self) -> Path:
        """Where the launcher says what happened to processes."""
        return self.path / "launcher.jsonl"

    def begin(self, run: RunConfig, topology: Topology) -> None:
        """Write manifest and topology, the graph as its edges; raises OutputError."""
        manifest = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "launched": time.time(),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "seed": run.experiment.seed,
            "peers": topology.peers,
            "graph_digest": topology.digest,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS_OF},
            "machine": {"system": platform.platform(), "processors": os.cpu_count()},
        }
        resolved = run.model_copy(update={"graph": topology.to_config()})
        self._write("manifest.json", json.dumps(manifest, indent=2) + "\n")
        self._write("topology.yaml", resolved.to_yaml())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json``, and into the manifest what only those who have torch loaded know: the processors."""
        self._write("summary.json", json.dumps(summary, indent=2) + "\n")
        manifest, processors = self.manifest(), summary.get("processors")
        machine = manifest.get("machine")
        if processors and isinstance(machine, dict) and machine.get("peers_by_capability") != processors:
            manifest["machine"] = machine | {"peers_by_capability": processors}
            self._write("manifest.json", json.dumps(manifest, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        part = self.path / f".{name}.{os.getpid()}"  # peers that share a folder write the same files
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            part.write_text(text, encoding="utf-8")
            os.replace(part, self.path / name)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path / name}: {error.strerror}; choose another folder with --out"
            ) from None

    def events(self) -> dict[int, Sequence[Event]]:
        """Read the reports of all peers that have any; raises MissingFileError where there are none."""
        return self.read()[0]

    def read(self) -> tuple[dict[int, Sequence[Event]], int]:
        """Read the reports of all peers; with them, how many lines are no reports of the peer whose file they are in.

        Raises MissingFileError where there are no reports.
        """
        found: dict[int, list[Event]] = {}
        others = 0
        for path in self.path.glob("peers/peer-*.jsonl"):
            for event in _events(path):
                if event is not None and path == self.reports(event.peer):
                    found.setdefault(event.peer, []).append(event)
                else:
                    others += 1
        if not found:
            raise MissingFileError(f"{self.path} is no run folder: it has no peers/peer-*.jsonl with reports")
        return dict(sorted(found.items())), others

    def noticed(self, by_peer: Mapping[int, Iterable[Event]]) -> list[Noticed]:
        """Pick what was out of the ordinary from what peers said, and add the launcher's, in the order of time."""
        said = [event for events in (*by_peer.values(), _events(self.happenings)) for event in events]
        return sorted((event for event in said if isinstance(event, Noticed)), key=lambda event: event.time)

    def manifest(self) -> dict[str, Any]:
        """Read ``manifest.json``; empty where it is not there or holds something else."""
        try:
            found = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def launched(self) -> float | None:
        """Give the Unix time at which the run was launched, where the manifest says so."""
        found = self.manifest().get("launched")
        return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def _events(path: Path) -> Iterator[Event | None]:
    """Read a file of reports line by line, None for what is none; nothing where there is no file."""
    if path.is_file():
        with path.open("rb") as file:
            yield from (parse(line) for line in file if line.strip())
