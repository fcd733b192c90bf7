"""A Docker engine and Compose, as the tests use them: real containers, each with its own address on a bridge."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from dslth.runs.events import parse
from dslth.runs.summary import Summary

ROOT = Path(__file__).parents[2]
TOOLS = ROOT.parent / "shared" / "tools"
"""An optional place: scripts that start an engine and make a base image where nothing can be pulled."""
BASE = "python:3.11-slim-bookworm"
IMAGE = "dslth"


def sh(*words, check=True, timeout=600, **options):
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, **options
    )
    assert not check or done.returncode == 0, f"{' '.join(done.args)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def wait_for(condition, seconds=120):
    """Poll a condition; fail if it never holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


def engine_answers():
    return shutil.which("docker") is not None and sh("docker", "info", check=False).returncode == 0


def start_engine():
    """Start an engine unless one answers; True where this started it."""
    if engine_answers():
        return False
    assert (TOOLS / "docker-engine-up").exists(), "no Docker engine answers; start one"
    sh(TOOLS / "docker-engine-up")
    return True


def composes():
    """Return the Compose commands that are here: 1.29, 2, or both."""
    found = {}
    if shutil.which("docker-compose"):
        found["v1"] = ["docker-compose"]
    if sh("docker", "compose", "version", check=False).returncode == 0:
        found["v2"] = ["docker", "compose"]
    return found


class Project:
    """One Compose project: its containers, its volumes, and what its collector wrote."""

    def __init__(self, compose, name, file, environment=None):
        self.name = name
        self._command = [*compose, "-p", name, "-f", str(file)]
        self._environment = os.environ | {"COMPOSE_IGNORE_ORPHANS": "1"} | (environment or {})

    def __call__(self, *words, **options):
        return sh(*self._command, *words, env=self._environment, **options)

    def container(self, service):
        labels = {"project": self.name, "service": service}
        filters = [word for key, value in labels.items() for word in ("-f", f"label=com.docker.compose.{key}={value}")]
        return sh("docker", "ps", "-aq", "--no-trunc", *filters).stdout.strip()

    def inspect(self, service):
        return json.loads(sh("docker", "inspect", self.container(service)).stdout)[0]

    def pid(self, service):
        """The process id, out here, of the peer itself: the child of its container's init."""
        init = self.inspect(service)["State"]["Pid"]
        children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        return int(children[0]) if children else None

    def volume(self, name):
        """Where a volume of the project lies."""
        return Path(sh("docker", "volume", "inspect", "-f", "{{.Mountpoint}}", f"{self.name}_{name}").stdout.strip())

    def read(self, path, volume="runs"):
        """Read a file of a volume; empty where it is not there."""
        file = self.volume(volume) / path
        return file.read_text() if file.exists() else ""

    def read_names(self, volume):
        return [path.name for path in self.volume(volume).iterdir()]

    def summary(self):
        return Summary.model_validate_json(self.read("summary.json"))

    def round(self, peer):
        """The rounds that a peer has reported so far."""
        return self.read(f"peers/peer-{peer}.jsonl").count('"event":"round"')

    def noticed(self, peer, what):
        """What a peer noticed so far, of one kind."""
        lines = self.read(f"peers/peer-{peer}.jsonl").splitlines()
        events = [parse(line) for line in lines if '"noticed"' in line]
        return [event for event in events if event is not None and event.what == what]

    def end(self, seconds=240):
        """Wait until all containers have ended; return their exit codes."""

        def ended():
            ids = sh("docker", "ps", "-aq", "-f", f"label=com.docker.compose.project={self.name}").stdout.split()
            states = json.loads(sh("docker", "inspect", *ids).stdout)
            running = [state for state in states if state["State"]["Status"] not in ("exited", "dead")]
            return None if running else {state["Name"].strip("/"): state["State"]["ExitCode"] for state in states}

        return wait_for(ended, seconds)

    def down(self):
        self("down", "--volumes", "--timeout", "1", check=False)
