"""Bounds on what others can take from a peer, where libzmq sets none.

libzmq bounds the size of a frame. It bounds neither the frames of a message that never ends, which it keeps until the
last one is there, nor the number of connections; and its bound on waiting messages may not be used: a connection whose
input it has stopped ends the whole process when that connection breaks at the wrong moment (an assertion in libzmq). A
thread of the peer's watches all of it from outside: what the kernel received on each connection, less what the peer was
given from it.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import zmq
from zmq.utils.monitor import recv_monitor_message

from dslth.transport.tcp import Connection

__all__ = ["EVENTS", "Guard"]

STRANGERS = 32
"""Connections that may be open at once and have not said who they are, besides two for each neighbour."""
PER_NEIGHBOUR = 2
"""Connections of one neighbour that may be open at once: the one in use, and one that it does not know to be dead."""
PATIENCE = 4
"""How many times as much a neighbour may have waiting here as a stranger: one that is faster sends ahead."""
CURVE = 33
"""Bytes that CURVE adds to a frame: a name, a nonce, flags and a seal."""
LOOK_SECONDS = 0.05
"""How often the connections are looked at; what a connection can send in that time is held beyond the bound."""
LOOK_SHARE = 0.1
"""Share of a processor that looking may take, at most: a thousand connections are looked at less often."""

EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_MONITOR_STOPPED
)
"""What the guard wants to hear of a listening socket."""


class _Watched:
    """A connection: whose it is (None: nobody knows yet), and the bytes of its messages that the peer was given."""

    def __init__(self, fd: int, neighbour: int | None = None) -> None:
        self.connection = Connection(fd)
        self.neighbour = neighbour
        self.given = 0


class Guard:
    """Watches the connections to a listening ``port`` by its ``monitor``, which is the guard's own from here on.

    It watches those that the peer opened, too, as it is told of them. A connection that holds more than ``most_held``
    bytes of unfinished or waiting messages is cut off (a neighbour's: four times as many), and so is the oldest that
    has not said who it is where there are too many of those, and the oldest of a neighbour that has more than two.
    ``neighbours`` is how many may be on their way in.

    Connections whose handshake comes to nothing are counted as ``bad-handshake``; with ``keys`` as ``no-key`` where
    none was shown. One that ends before it has said a whole message is ``broken-off`` where libzmq does not say why: it
    sent a frame over the bound, or what is no ZMTP.
    """

    def __init__(self, monitor: "zmq.Socket[bytes]", port: int, most_held: int, *, keys: bool, neighbours: int) -> None:
        self._monitor, self._port, self._most_held = monitor, port, most_held
        self._no_key, self._keys = "no-key" if keys else "bad-handshake", keys
        self._neighbours = neighbours
        self._lock = threading.Lock()
        self._open: dict[int, _Watched] = {}
        self._early: dict[int, _Watched] = {}
        self._opened: dict[int, _Watched] = {}
        self._cut: set[int] = set()
        self._refused: Counter[str] = Counter()
        self._failing = ""
        self._denied = 0
        self._thread = threading.Thread(target=self._watch, name="dslth-guard", daemon=True)
        self._thread.start()

    def opened(self, fd: int, neighbour: int) -> None:
        """Learn of a connection that the peer itself opened to a neighbour."""
        with self._lock:
            self._opened[fd] = _Watched(fd, neighbour)

    def delivered(self, fd: int, frames: Sequence[int], *, opened: bool = False) -> None:
        """Learn that the peer was given a message, by the lengths of its frames.

        ``opened``: it came on a connection that the peer itself opened.
        """
        with self._lock:
            watched = self._opened.get(fd) if opened else self._accepted(fd)
            if watched:
                watched.given += sum(_on_the_wire(frame, keys=self._keys) for frame in frames)

    def identified(self, fd: int, neighbour: int) -> None:
        """Learn that an accepted connection is a neighbour's."""
        with self._lock:
            self._accepted(fd).neighbour = neighbour
            self._bound(neighbour)

    def _accepted(self, fd: int) -> _Watched:
        """Return the connection of a descriptor; its words may be here before the monitor has told of it."""
        return self._open.get(fd) or self._early.setdefault(fd, _Watched(fd))

    def refused(self) -> Mapping[str, int]:
        """Count what was cut off and which handshakes failed, by name, since the start."""
        with self._lock:
            return dict(self._refused)

    def join(self) -> None:
        """Wait until the monitor has said that it stopped."""
        self._thread.join()

    def _watch(self) -> None:
        looks_at = time.monotonic()
        try:
            while True:
                if self._monitor.poll(int(1000 * LOOK_SECONDS)):
                    event = recv_monitor_message(self._monitor)
                    if event["event"] == zmq.EVENT_MONITOR_STOPPED:
                        return
                    with self._lock:
                        self._note(event["event"], event["value"])
                if (now := time.monotonic()) >= looks_at:
                    with self._lock:
                        self._look()
                    looks_at = now + max(LOOK_SECONDS, (time.monotonic() - now) / LOOK_SHARE)
        finally:
            self._monitor.close()

    def _note(self, event: int, value: int) -> None:
        match event:
            case zmq.EVENT_ACCEPTED:
                accepted, early = _Watched(value), self._early.pop(value, None)
                ends = accepted.connection.ends
                if early and early.connection.ends == ends:
                    accepted = early
                if ends is not None and ends[0][1] != self._port:  # gone by now, and its number another connection's
                    return
                self._open[value] = accepted
                self._bound(accepted.neighbour)
            case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:  # of the connection whose end is said next
                mismatch = value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
                self._failing = self._no_key if mismatch else "bad-handshake"
            case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:  # likewise
                self._failing = self._no_key
            case zmq.EVENT_HANDSHAKE_FAILED_AUTH:  # its end comes later; who asked for its key has counted it
                self._denied += 1
            case zmq.EVENT_DISCONNECTED:
                self._ended(value)

    def _bound(self, neighbour: int | None) -> None:
        """Cut off the oldest connection of a neighbour, or of those who are nobody yet, where there are too many."""
        theirs = [fd for fd, accepted in self._open.items() if accepted.neighbour == neighbour]
        if len(theirs) > (STRANGERS + 2 * self._neighbours if neighbour is None else PER_NEIGHBOUR):
            self._cut_off(theirs[0], "too-many-connections")

    def _ended(self, fd: int) -> None:
        accepted, failing = self._open.pop(fd, None), self._failing
        self._failing = ""
        if fd in self._cut:
            self._cut.remove(fd)
        elif failing:
            self._refused[failing] += 1
        elif accepted is None or not accepted.given:
            if self._denied:
                self._denied -= 1
            else:
                self._refused["broken-off"] += 1

    def _look(self) -> None:
        for fd, watched in list(self._open.items()):
            watched.connection.refresh()
            if self._holds_too_much(watched):
                self._cut_off(fd, "flood")
        for fd, watched in list(self._opened.items()):
            if not watched.connection.refresh():
                del self._opened[fd]
            elif self._holds_too_much(watched) and watched.connection.cut():
                del self._opened[fd]
                self._refused["flood"] += 1
        self._bound(None)

    def _holds_too_much(self, watched: _Watched) -> bool:
        patience = 1 if watched.neighbour is None else PATIENCE
        return watched.connection.taken - watched.given > patience * self._most_held

    def _cut_off(self, fd: int, reason: str) -> None:
        if self._open[fd].connection.cut():  # else at the next look
            del self._open[fd]
            self._cut.add(fd)
            self._refused[reason] += 1


def _on_the_wire(frame: int, *, keys: bool) -> int:
    """Return how many bytes a frame of this length takes on TCP (ZMTP 3.1, CurveZMQ)."""
    frame += CURVE if keys else 0
    return frame + (2 if frame < 256 else 9)
