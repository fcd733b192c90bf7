"""dslth's commands as real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ENV = {key: value for key, value in os.environ.items() if not key.startswith(("DSLTH", "COLUMNS"))}


class Commands:
    """Runs dslth's commands as processes of their own, and leaves none behind."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.started = []

    def start(self, command, *arguments, **options):
        code = "main" if command == "dslth" else "peer_main"
        program = f"import sys; from dslth.__main__ import {code}; sys.argv[0] = {command!r}; {code}()"
        line = [sys.executable, "-c", program]
        process = subprocess.Popen(
            [*line, *map(str, arguments)],
            cwd=self.folder,
            env=ENV | options.pop("env", {}),
            stdin=subprocess.DEVNULL,
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        self.started.append(process)
        return process

    def run(self, command, *arguments, timeout=120, **options):
        process = self.start(command, *arguments, **options)
        stdout, stderr = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def end(self):
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its peers too: they hold the pipes that are read here
            process.communicate()
