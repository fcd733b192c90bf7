"""A run while it goes on: how far it is, which process is which peer, and what it leaves."""

import os
import time
from collections import Counter
from pathlib import Path

import psutil
import yaml

from dslth.runs.folder import RunFolder
from dslth.runs.summary import Summary


def write_topology(path, *, graph=None, network=None, peers=None, **experiment):
    """Write a topology file of a small, quick run: a ring of three peers, an mlp, digits."""
    settings = {
        "graph": graph or {"kind": "ring", "peers": 3},
        "experiment": {"rounds": 3, "seed": 7, "model": {"name": "mlp"}, **experiment},
    }
    given = {"network": network, "peers": peers}
    path.write_text(yaml.safe_dump(settings | {key: value for key, value in given.items() if value}))
    return path


def wait_for(condition, seconds=90):
    """Poll a condition; fail if it never holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def session(pid):
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def processes_of(pid):
    """The live processes of the session that a command started."""
    return [p.pid for p in psutil.process_iter() if session(p.pid) == pid]


def peers_of(pid):
    """The peers of a run by id: each holds its file of reports open."""
    found = {}
    for process in psutil.process_iter():
        if process.pid == pid or session(process.pid) != pid:
            continue
        try:
            files = [Path(file.path) for file in process.open_files() if file.mode != "r"]
        except psutil.Error:  # it has just ended
            continue
        found |= {int(f.stem.removeprefix("peer-")): process for f in files if f.suffix == ".jsonl"}
    return found


def rounds_done(folder, peers):
    """The number of rounds that every peer has reported."""
    files = list(Path(folder).glob("peers/*.jsonl"))
    return min(file.read_text().count('"event":"round"') for file in files) if len(files) == peers else 0


def digests(summary):
    return {peer.id: peer.mask_digest for peer in summary.peers}


def rounds_of(folder):
    """The digest of every mask, by peer and round."""
    return {
        (e.peer, e.round): e.mask_digest for said in RunFolder(Path(folder)).events().values() for e in rounds(said)
    }


def rounds(events):
    return [event for event in events if event.event == "round"]


def what_happened(summary):
    """How often each thing was noticed about, or by, each peer."""
    return Counter((h.what, h.peer) for h in summary.happenings)


def summary_of(process, kind=Summary):
    """The summary that a command prints at its end; a peer's own is of another kind."""
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return kind.model_validate_json(stdout)


def printed(done):
    """The summary that a command that has ended well printed."""
    assert done.returncode == 0, done.stderr
    return Summary.model_validate_json(done.stdout)


def written(folder):
    """The summary that a run left in its folder."""
    return Summary.model_validate_json((folder / "summary.json").read_text())
