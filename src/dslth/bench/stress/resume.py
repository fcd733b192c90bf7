"""Runs of which a peer, or all, are killed at random moments and resumed: whether the masks stay the same."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from dslth.config import RunConfig, TransportName
from dslth.engines.supervisor import run_local
from dslth.errors import PeerFailedError
from dslth.runs.folder import RunFolder
from dslth.runs.summary import Summary
from dslth.seeds import Stream
from dslth.topology import Topology

__all__ = ["Trial", "peers_of", "trials"]

LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Trial:
    """One run: who was killed (None: all) when the slowest peer had done ``round`` rounds, and the result."""

    killed: int | None
    round: int
    same: bool
    restarts: int
    seconds: float

    def record(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        who = "all" if self.killed is None else f"peer {self.killed}"
        masks = "the same masks" if self.same else "OTHER MASKS"
        return f"{who} killed after round {self.round}: {masks}, {self.seconds:.1f} s"


def trials(run: RunConfig, topology: Topology, folder: Path, kills: int, whole: int) -> Iterator[Trial]:
    """Run once undisturbed, then with a peer killed ``kills`` times, and as a whole ``whole`` times.

    Moments and victims are drawn from the run's seed. Raises PeerFailedError if a run fails.
    """
    calm = RunFolder(folder / "undisturbed")
    expected = _digests(run_local(run, topology, calm, transport=TransportName.MEMORY).measured())
    file = calm.path / "topology.yaml"
    stream = Stream(run.experiment.seed, "resume")
    for number in range(kills + whole):
        victim = int(stream.choice(topology.peers, 1)[0]) if number < kills else None
        at, moment = map(float, stream.uniform(2))
        out = folder / f"trial-{number}"
        begun = time.monotonic()
        process = _dslth("run", "--topology", file, "--out", out, "--json")
        try:
            _wait(process, out, topology.peers, int(at * (run.experiment.rounds - 2)))
            time.sleep(moment * 0.2)  # a random moment within a round: there is no condition to wait for
            killed_in = _least_round(out, topology.peers)
            if victim is None:
                _kill_all(process)
                process = _dslth("run", "--resume", out, "--json")
            elif (peer := peers_of(process.pid).get(victim)) is not None:
                peer.kill()
            summary = _summary(process)
        finally:
            _kill_all(process)
        restarts = sum(said.what == "resumed" for said in summary.happenings)
        same = _digests(summary) == expected
        yield Trial(victim, killed_in, same, restarts, time.monotonic() - begun)


def _dslth(*arguments: str | Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "dslth", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _summary(process: "subprocess.Popen[str]") -> Summary:
    stdout, stderr = process.communicate()
    if process.returncode:
        raise PeerFailedError(f"a run ended with {process.returncode}: {stderr.strip()[-500:]}")
    return Summary.model_validate_json(stdout)


def _kill_all(process: "subprocess.Popen[str]") -> None:
    """Kill a command and all that it started, and wait until all have ended."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    while any(_session(other.pid) == process.pid for other in psutil.process_iter()):
        time.sleep(LOOK_SECONDS)


def _wait(process: "subprocess.Popen[str]", out: Path, peers: int, round_: int) -> None:
    """Wait until all peers have done ``round_`` rounds."""
    while _least_round(out, peers) < round_ or len(peers_of(process.pid)) < peers:
        if process.poll() is not None:
            return
        time.sleep(LOOK_SECONDS)


def _least_round(out: Path, peers: int) -> int:
    files = list(out.glob("peers/*.jsonl"))
    return min(file.read_text().count('"event":"round"') for file in files) if len(files) == peers else 0


def peers_of(pid: int) -> dict[int, psutil.Process]:
    """Return the peers' processes of a ``dslth run``, by its process id: each holds its file of reports open."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if process.pid == pid or _session(process.pid) != pid:
            continue
        with suppress(psutil.Error):  # it has just ended
            files = [Path(file.path) for file in process.open_files() if file.mode != "r"]
            found |= {int(f.stem.removeprefix("peer-")): process for f in files if f.suffix == ".jsonl"}
    return found


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _digests(summary: Summary) -> dict[int, str | None]:
    return {peer.id: peer.mask_digest for peer in summary.peers}
