"""The process that peers are forked from: it loads torch once, for all of them, while its launcher goes on."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["context", "end_unused", "leave_nothing", "start", "start_early", "without_main"]

ELSEWHERE = {"memory", "ray", "--resume", "-h", "--help"}
"""Words on the command line of a run that forks no peers, or of which only its folder tells whether it does."""

ALLOCATOR = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1073741824"
"""Memory in huge pages, which are had in few faults, and kept from one array to the next until a turn ends."""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

_unused = False


def start() -> None:
    """Start the server, unless it runs already. It needs a second until it can fork; who asks before that waits."""
    forkserver.set_forkserver_preload(["dslth.engines.warm"])
    resource_tracker.ensure_running()  # separately, because starting it unblocks signals
    # inherited: nothing interrupts the server's imports, and it outlives the peers, to report how they end
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with _allocator():
        forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # none is lost


@contextmanager
def _allocator() -> Iterator[None]:
    """Set up the allocator of processes that are started meanwhile, unless somebody else has."""
    if "GLIBC_TUNABLES" in os.environ or not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text():
        yield
        return
    os.environ["GLIBC_TUNABLES"] = ALLOCATOR
    try:
        yield
    finally:
        del os.environ["GLIBC_TUNABLES"]


def start_early(command_line: Sequence[str]) -> None:
    """Start the server for a command that will probably fork peers, before that command is even imported."""
    global _unused
    if command_line[1:2] == ["run"] and not ELSEWHERE.intersection(command_line):
        start()
        _unused = True


def context() -> ForkServerContext:
    """Return what forks peers from the server, which is started if it does not run."""
    global _unused
    start()
    _unused = False
    return multiprocessing.get_context("forkserver")


@contextmanager
def without_main() -> Iterator[None]:
    """Let a process that is started meanwhile not import the program's main file again: it may be any user's script."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def end_unused() -> None:
    """End a server that was started early, and in vain."""
    global _unused
    if _unused:
        _unused = False
        server: Any = forkserver._forkserver
        os.kill(server._forkserver_pid, signal.SIGKILL)
        server._stop()


def leave_nothing() -> None:
    """Clean up in a process that is about to end without more ado: an unused server, and the server's folder."""
    end_unused()
    util._run_finalizers()  # type: ignore[attr-defined]
