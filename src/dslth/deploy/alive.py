"""A peer's health check: ``python -m dslth.deploy.alive PORT`` ends with 0 if a peer accepts connections on that port.

It reads what the kernel says about the listening socket, and imports nothing heavy: a container's engine starts it
every few seconds. Connecting would fail in the handshake, and the peer would count it as a stranger's attempt.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["takes_callers"]

LISTEN = "0A"
"""The state of a listening socket in Linux's /proc/net/tcp."""


def takes_callers(port: int, tables: Path = Path("/proc/net")) -> bool:
    """Return whether a process of this network namespace listens on a port, and no connection waits to be accepted."""
    queues = list(_queues(port, tables))
    return bool(queues) and not any(queues)


def _queues(port: int, tables: Path) -> Iterator[int]:
    """Yield, for each socket that listens on a port, how many connections wait to be accepted."""
    for name in ("tcp", "tcp6"):
        table = tables / name
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            _, local, _, state, queues, *_ = line.split()
            if state == LISTEN and int(local.rpartition(":")[2], 16) == port:
                yield int(queues.partition(":")[2], 16)


if __name__ == "__main__":
    sys.exit(not takes_callers(int(sys.argv[1])))
