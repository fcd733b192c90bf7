"""Host names to IP addresses, without waiting: a slow or silent name server delays nobody.

libzmq looks names up in the one thread that also moves every peer's bytes, so it is given numeric addresses only.
"""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

__all__ = ["Names", "resolve"]

AT_ONCE = 16
"""Names that are looked up at the same time, at most."""
AGAIN_SECONDS = (1.0, 10.0)
"""How long after an answer, or none, a name is looked up again: twice as long each time, up to the second number."""


def resolve(host: str) -> Sequence[str]:
    """Return the IPv4 addresses of a host that the system finds, if any; may take long."""
    with suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))
    return []


class _Name:
    """What is known about a name: its addresses, when to ask again, and how long to wait after that."""

    def __init__(self) -> None:
        self.numbers: Sequence[str] = []
        self.asks_at, self.pause, self.asking = 0.0, AGAIN_SECONDS[0], False


class Names:
    """Names and their addresses; ``look_up`` asks for one name, in a thread of its own, and may take long."""

    def __init__(self, look_up: Callable[[str], Sequence[str]] = resolve) -> None:
        self._look_up = look_up
        self._lock = threading.Lock()
        self._known: dict[str, _Name] = {}

    def numbers(self, host: str) -> Sequence[str]:
        """Return the addresses of a host that are known by now; asks again in the background."""
        with self._lock:
            name = self._known.setdefault(host, _Name())
            asking = sum(other.asking for other in self._known.values())
            if not name.asking and asking < AT_ONCE and time.monotonic() >= name.asks_at:
                with suppress(RuntimeError):  # no thread can be started: later
                    # a daemon: a name server that does not answer must not keep the process alive
                    threading.Thread(target=self._ask, args=(host, name), name="dslth-names", daemon=True).start()
                    name.asking = True
            return name.numbers

    def fresh(self, host: str) -> None:
        """Ask for a name without delay when it is next needed: its address worked until now."""
        with self._lock:
            if host in self._known:
                self._known[host].asks_at, self._known[host].pause = 0.0, AGAIN_SECONDS[0]

    def _ask(self, host: str, name: _Name) -> None:
        numbers = self._look_up(host)
        with self._lock:
            name.numbers = numbers
            name.asking, name.asks_at = False, time.monotonic() + name.pause
            name.pause = min(2 * name.pause, AGAIN_SECONDS[1])
