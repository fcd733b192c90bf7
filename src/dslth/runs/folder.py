"""A run folder: what a run leaves on disk, file by file.

::

    manifest.json            versions, seed, digest of the graph, command
    topology.yaml            the topology file as resolved; can be run again as it is
    peers/peer-3.jsonl       reports of peer 3, a line each: joined, rounds, finished
    tickets/peer-3.safetensors   its personal model: seed, model name, shapes, packed mask
    checkpoints/peer-3/          its last two checkpoints; removed once the run has finished
    launcher.jsonl           which peers died and were restarted
    summary.json             the figures of the run
    locks/run                held by the launcher or collector that works here
    locks/peer-3             held by the process that is peer 3

Only the holder of a lock writes, and the kernel releases it when its process ends: a lock file alone means nothing.
"""

import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dslth import files
from dslth.config import EngineName, Restart, RunConfig, TransportName
from dslth.errors import BusyError, MissingFileError, OutputError
from dslth.runs.events import Event, Finished, Noticed, parse
from dslth.topology import Topology

if TYPE_CHECKING:
    from dslth.runs.summary import Summary

__all__ = ["Launch", "RunFolder"]

NAMED = re.compile(r"peer-(0|[1-9][0-9]{0,8})")
VERSIONS_OF = ("dslth", "torch", "numpy", "pyzmq", "bitarray")


class Launch(BaseModel):
    """How the peers of a run were started, for resuming it: options of ``dslth run``."""

    model_config = ConfigDict(frozen=True)

    transport: TransportName = TransportName.ZEROMQ
    engine: EngineName = EngineName.LOCAL
    address: str | None = None
    restart: Restart = Restart.ON_FAILURE
    orphans: bool = True
    curve: bool = False
    insecure: bool = False
    faults: str | None = None
    join_timeout: float = 60.0


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

    @classmethod
    def new(cls, wanted: str | Path | None, name: str, option: str = "out") -> "RunFolder":
        """Make a folder that is new or empty, or one under ``runs/`` by name and time; raises OutputError."""
        if wanted is None:
            return cls.fresh(name)
        path = Path(wanted)
        if os.path.lexists(path) and not path.is_dir():
            raise OutputError(f"{option} {path} is not a folder; choose another name, or remove it")
        try:
            path.mkdir(parents=True, exist_ok=True)  # now, not when the work is done
            if any(path.iterdir()):
                raise OutputError(
                    f"{option} {path} exists already and is not empty; choose another folder, or remove it"
                )
        except OSError as error:
            raise OutputError(f"cannot make {option} {path}: {error.strerror}; choose another folder") from None
        return cls(path)

    def reports(self, peer: int) -> Path:
        """Return the file of a peer's reports."""
        return self.path / "peers" / f"peer-{peer}.jsonl"

    def ticket(self, peer: int) -> Path:
        """Return the file of a peer's ticket."""
        return self.path / "tickets" / f"peer-{peer}.safetensors"

    def checkpoints(self, peer: int) -> Path:
        """Return the folder of a peer's checkpoints."""
        return self.path / "checkpoints" / f"peer-{peer}"

    @property
    def happenings(self) -> Path:
        """The file in which the launcher reports what happened to processes."""
        return self.path / "launcher.jsonl"

    # --- its owner --------------------------------------------------------------------------------------------------

    def _lock(self, peer: int | None) -> Path:
        return self.path / "locks" / ("run" if peer is None else f"peer-{peer}")

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder, as a launcher or collector does; raises BusyError if anyone else works in it.

        On a file system without locks a note says so, and others are not kept out.
        """
        with self._held(self._lock(None), f"{self.path} is in use") as works:
            if not works:
                print(f"dslth: note: {self.path} has no locks: start nothing else in it", file=sys.stderr)  # noqa: T201
            at_work = [f"{path.name} ({by})" for path in self._peers("locks/peer-*") if (by := files.holder(path))]
            if at_work:
                who = ", ".join(at_work[:3]) + (f" and {len(at_work) - 3} more" if len(at_work) > 3 else "")
                who = who.replace("peer-", "peer ")
                raise BusyError(f"{self.path} is in use: {who} still at work; wait until they end, or end them")
            yield

    @contextmanager
    def owned_by(self, peer: int) -> Iterator[None]:
        """Own the files of a peer, as its process does; raises BusyError if another process is that peer."""
        with self._held(self._lock(peer), f"peer {peer} is at work in {self.path} already"):
            yield

    def check_free(self) -> None:
        """Raise BusyError if a launcher or collector owns the folder."""
        if (by := files.holder(self._lock(None))) is not None:
            raise BusyError(f"{self.path} is in use ({by}); choose another folder with --out, or wait for its end")

    @contextmanager
    def _held(self, path: Path, otherwise: str) -> Iterator[bool]:
        try:
            lock = files.Lock(path)
        except BlockingIOError:
            by = files.holder(path) or "another process"
            raise BusyError(f"{otherwise} ({by}); wait for its end, or choose another folder") from None
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}; choose another folder with --out") from None
        try:
            yield lock.works
        finally:
            lock.release()

    # --- writing ----------------------------------------------------------------------------------------------------

    def begin(self, run: RunConfig, topology: Topology, launch: Launch | None = None, *, resumed: bool = False) -> None:
        """Write manifest and topology, the graph as its edges; raises OutputError.

        ``resumed``: the manifest is kept, and the time of resuming added.
        """
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
        if resumed and (launches := self.launches()):
            before = self.manifest()
            manifest |= {key: before[key] for key in ("started", "launched", "command") if key in before}
            manifest["resumed"] = [*launches[1:], time.time()]
        if launch is not None:
            manifest["launch"] = launch.model_dump()
        resolved = run.model_copy(update={"graph": topology.to_config()})
        self._write("topology.yaml", resolved.to_yaml())
        self._write("manifest.json", json.dumps(manifest, indent=2) + "\n")

    def write_summary(self, summary: "Summary") -> None:
        """Write ``summary.json``, and the processors into the manifest: only processes with torch loaded know them.

        Raises OutputError.
        """
        self._write("summary.json", summary.to_json(indent=2) + "\n")
        manifest = self.manifest()
        processors = {name: list(peers) for name, peers in summary.processors.items()}
        machine = manifest.get("machine")
        if processors and isinstance(machine, dict) and machine.get("peers_by_capability") != processors:
            manifest["machine"] = machine | {"peers_by_capability": processors}
            self._write("manifest.json", json.dumps(manifest, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        try:
            files.replace(self.path / name, text.encode())
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path / name}: {error.strerror}; choose another folder with --out"
            ) from None

    # --- reading ----------------------------------------------------------------------------------------------------

    def _peers(self, pattern: str) -> list[Path]:
        """List the files and folders that are named after a peer, by the peer's number."""
        return sorted((path for path in self.path.glob(pattern) if NAMED.fullmatch(path.stem)), key=_number)

    def said_by(self, peer: int) -> list[Event]:
        """Read a peer's reports, in order; another peer's lines in its file are left out."""
        return [event for event in _events(self.reports(peer)) if event is not None and event.peer == peer]

    def events(self) -> dict[int, Sequence[Event]]:
        """Read the reports of all peers that have any; raises MissingFileError if there are none."""
        return self.read()[0]

    def read(self) -> tuple[dict[int, Sequence[Event]], int]:
        """Read the reports of all peers; return them, and how many lines are not reports of their file's peer.

        Raises MissingFileError if there are no reports.
        """
        found: dict[int, Sequence[Event]] = {}
        others = 0
        for path in self._peers("peers/peer-*.jsonl"):
            said = list(_events(path))
            mine = [event for event in said if event is not None and event.peer == _number(path)]
            others += len(said) - len(mine)
            if mine:
                found[_number(path)] = mine
        if not found:
            raise MissingFileError(f"{self.path} is not a run folder: it has no peers/peer-*.jsonl with reports")
        return found, others

    def have_finished(self, peers: Iterable[int], rounds: int) -> bool:
        """Return whether all these peers have completed this many rounds and ended properly."""
        lasts = (([None, *self.said_by(peer)])[-1] for peer in peers)
        return all(isinstance(last, Finished) and last.rounds_completed >= rounds for last in lasts)

    def noticed(self, by_peer: Mapping[int, Iterable[Event]]) -> list[Noticed]:
        """Select what was unusual from the peers' reports, and add the launcher's, in the order of time."""
        said = [event for events in (*by_peer.values(), _events(self.happenings)) for event in events]
        return sorted((event for event in said if isinstance(event, Noticed)), key=lambda event: event.time)

    def manifest(self) -> dict[str, Any]:
        """Read ``manifest.json``; empty if it does not exist or holds something else."""
        try:
            found = json.loads(b"\n".join(_lines(self.path / "manifest.json")))
        except (MissingFileError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def launch(self) -> Launch:
        """Read how the run was launched; the defaults if the manifest does not say."""
        try:
            return Launch.model_validate(self.manifest().get("launch", {}))
        except ValidationError:
            return Launch()

    def launches(self) -> list[float]:
        """Read the Unix times at which the run was launched and resumed, if the manifest says so."""
        manifest = self.manifest()
        resumed = manifest.get("resumed")
        found = [manifest.get("launched"), *(resumed if isinstance(resumed, list) else [])]
        return [float(time) for time in found if _is_time(time)] if _is_time(found[0]) else []

    def launched(self) -> float | None:
        """Read the Unix time at which the run was launched, if the manifest says so."""
        return next(iter(self.launches()), None)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("peer-"))


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e11 and math.isfinite(value)


def _events(path: Path) -> Iterator[Event | None]:
    """Read a file of reports line by line, None for each line that is not one; nothing if there is no file."""
    return (parse(line) for line in _lines(path) if line.strip())


def _lines(path: Path) -> list[bytes]:
    """Read the lines of a file; none if it is not a regular file. Raises MissingFileError if it cannot be read."""
    if not path.is_file():  # opening a pipe would wait
        return []
    try:
        return path.read_bytes().split(b"\n")
    except OSError as error:
        raise MissingFileError(f"cannot read {path}: {error.strerror}") from None
