"""Bounds on what strangers can take from a peer, where libzmq sets none.

libzmq bounds the size of a frame and the number of whole messages that wait. It bounds neither the frames of a message
that never ends, which it keeps until the last one is there, nor the number of connections. A thread of the peer's
watches both from outside: what the kernel received on each connection, less what the peer was given from it.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping

import zmq
from zmq.utils.monitor import recv_monitor_message

from dslth.transport.tcp import Connection

__all__ = ["EVENTS", "Guard"]

STRANGERS = 32
"""Connections that may be open at once and have not said who they are, besides two for each neighbour."""
LOOK_SECONDS = 0.05
"""How often the connections are looked at; what a connection can send in that time is held beyond the bound."""

EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_MONITOR_STOPPED
)
"""What the guard wants to hear of a listening socket."""


class _Accepted:
    """A connection that was accepted.

    ``spoke``: it has delivered a message; ``fresh``: since the last look. ``mark`` is how far its bytes were read then.
    """

    def __init__(self, fd: int) -> None:
        self.connection = Connection(fd)
        self.mark = 0
        self.identified = self.spoke = self.fresh = False


class Guard:
    """Watches the connections to a listening ``port`` by its ``monitor``, which is the guard's own from here on.

    A connection that holds more than ``most_held`` bytes of unfinished or waiting messages is cut off, and so is the
    oldest that has not said who it is where there are too many of those. ``neighbours`` is how many may be on their
    way in.

    Connections whose handshake comes to nothing are counted as ``bad-handshake``; with ``keys`` as ``no-key`` where
    none was shown. One that ends before it has said a whole message is ``broken-off`` where libzmq does not say why: it
    sent a frame over the bound, or what is no ZMTP.
    """

    def __init__(self, monitor: "zmq.Socket[bytes]", port: int, most_held: int, *, keys: bool) -> None:
        self._monitor, self._port, self._most_held = monitor, port, most_held
        self._no_key = "no-key" if keys else "bad-handshake"
        self.neighbours = 0
        self._lock = threading.Lock()
        self._open: dict[int, _Accepted] = {}
        self._early: dict[int, _Accepted] = {}
        self._cut: set[int] = set()
        self._refused: Counter[str] = Counter()
        self._failing = ""
        self._denied = 0
        self._thread = threading.Thread(target=self._watch, name="dslth-guard", daemon=True)
        self._thread.start()

    def delivered(self, fd: int) -> None:
        """Learn that a whole message came from a connection."""
        with self._lock:
            accepted = self._accepted(fd)
            accepted.spoke = accepted.fresh = True

    def identified(self, fd: int) -> None:
        """Learn that a connection is a neighbour's."""
        with self._lock:
            self._accepted(fd).identified = True

    def _accepted(self, fd: int) -> _Accepted:
        """Give the connection of a descriptor; its words may be here before the monitor has told of it."""
        return self._open.get(fd) or self._early.setdefault(fd, _Accepted(fd))

    def refused(self) -> Mapping[str, int]:
        """Count what was cut off and which handshakes failed, by name, since the start."""
        with self._lock:
            return dict(self._refused)

    def join(self) -> None:
        """Wait until the monitor has said that it stopped."""
        self._thread.join()

    def _watch(self) -> None:
        look_at = time.monotonic()
        try:
            while True:
                if self._monitor.poll(int(1000 * LOOK_SECONDS)):
                    event = recv_monitor_message(self._monitor)
                    if event["event"] == zmq.EVENT_MONITOR_STOPPED:
                        return
                    with self._lock:
                        self._note(event["event"], event["value"])
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + LOOK_SECONDS
                    with self._lock:
                        self._look()
        finally:
            self._monitor.close()

    def _note(self, event: int, value: int) -> None:
        match event:
            case zmq.EVENT_ACCEPTED:
                accepted, early = _Accepted(value), self._early.pop(value, None)
                ends = accepted.connection.ends
                if early and early.connection.ends == ends:
                    accepted = early
                if ends is None or ends[0][1] != self._port:  # gone by now, and its number another connection's
                    return
                self._open[value] = accepted
                strangers = [fd for fd, accepted in self._open.items() if not accepted.identified]
                if len(strangers) > STRANGERS + 2 * self.neighbours:
                    self._cut_off(strangers[0], "too-many-connections")
            case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:  # of the connection whose end is said next
                mismatch = value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
                self._failing = self._no_key if mismatch else "bad-handshake"
            case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:  # likewise
                self._failing = self._no_key
            case zmq.EVENT_HANDSHAKE_FAILED_AUTH:  # its end comes later; who asked for its key has counted it
                self._denied += 1
            case zmq.EVENT_DISCONNECTED:
                self._ended(value)

    def _ended(self, fd: int) -> None:
        accepted, failing = self._open.pop(fd, None), self._failing
        self._failing = ""
        if fd in self._cut:
            self._cut.remove(fd)
        elif failing:
            self._refused[failing] += 1
        elif accepted is None or not accepted.spoke:
            if self._denied:
                self._denied -= 1
            else:
                self._refused["broken-off"] += 1

    def _look(self) -> None:
        for fd, accepted in list(self._open.items()):
            connection = accepted.connection
            connection.refresh()
            if accepted.fresh:
                accepted.mark, accepted.fresh = connection.taken, False
            elif connection.taken - accepted.mark > self._most_held:
                self._cut_off(fd, "flood")

    def _cut_off(self, fd: int, reason: str) -> None:
        self._open.pop(fd).connection.cut()
        self._cut.add(fd)
        self._refused[reason] += 1
