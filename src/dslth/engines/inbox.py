"""Reports on their way from peers to their collector: PUSH to PULL, encrypted if there are keys.

The collector admits the peers' keys and no others, and accepts from each peer only its own reports.
"""

from array import array
from collections import Counter
from contextlib import suppress

import zmq

from dslth.errors import AddressError
from dslth.keys import Keys
from dslth.runs.events import Event, parse
from dslth.transport import guard
from dslth.transport.zap import DOMAIN, Gate

__all__ = ["Inbox", "Reporter"]

LARGEST = 1 << 20
"""Bytes of a report at most: libzmq cuts off senders of more."""
HELD = 4
"""Largest reports that a connection may have waiting here; those that a peer kept all come at once."""
KEPT = 1_000
"""Reports that a peer keeps while there is no collector."""
LINGER_MS = 1_000


class Reporter:
    """A peer's end. ``collector`` is the number, among the keys, of the collector at ``address``."""

    def __init__(self, address: str, keys: Keys | None = None, collector: int = 0) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, KEPT)
        if keys:
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, keys.neighbours[collector])
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(f"--reports: nobody can be at {address}: {zmq.strerror(error.errno or 0)}") from None

    def emit(self, event: Event) -> None:
        """Send a report, or drop it if too many wait already; never waits."""
        with suppress(zmq.Again):
            self._socket.send(event.model_dump_json().encode(), zmq.NOBLOCK)

    def close(self) -> None:
        """Take a moment to send what is still queued, and close everything."""
        self._socket.close()
        self._context.term()


class Inbox:
    """The collector's end, for the reports of peers 0 .. ``peers`` - 1; raises AddressError if it cannot listen.

    ``address`` is where it listens, with the real port. What is not a report, or another peer's, is dropped and counted
    in ``refused``.
    """

    def __init__(self, address: str, peers: int, keys: Keys | None = None) -> None:
        self._peers, self._keys = peers, keys
        self._refused: Counter[str] = Counter()
        self._context = zmq.Context()
        self._gate = Gate(self._context, keys.neighbours) if keys else None
        self._guard: guard.Guard | None = None
        self._pull = self._context.socket(zmq.PULL)
        self._pull.setsockopt(zmq.LINGER, 0)
        self._pull.setsockopt(zmq.RCVHWM, 0)  # the guard bounds what waits: see transport/zeromq.py
        self._pull.setsockopt(zmq.MAXMSGSIZE, LARGEST)
        if keys:
            self._pull.setsockopt(zmq.CURVE_SERVER, 1)
            self._pull.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
            self._pull.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)
            self._pull.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        monitor = self._context.socket(zmq.PAIR)
        monitor.setsockopt(zmq.LINGER, 0)
        monitor.setsockopt(zmq.RCVHWM, 0)
        self._pull.monitor("inproc://monitor", guard.EVENTS)
        monitor.connect("inproc://monitor")
        try:
            self._pull.bind(address)
        except zmq.ZMQError as error:
            self._pull.disable_monitor()  # first: with its reader closed, its last message would wait for ever
            monitor.close()
            self.close()
            reason = zmq.strerror(error.errno or 0).lower()
            raise AddressError(f"cannot listen on {address}: {reason}; choose another --listen") from None
        self.address = self._pull.getsockopt_string(zmq.LAST_ENDPOINT)
        port = int(self.address.rpartition(":")[2])
        self._guard = guard.Guard(monitor, port, HELD * LARGEST, keys=keys is not None, neighbours=peers)

    def receive(self, timeout: float) -> Event | None:
        """Wait up to ``timeout`` seconds for a report; None without one, or if what came is dropped."""
        if not self._pull.poll(int(1000 * timeout)):
            return None
        last = frame = self._pull.recv(copy=False)
        lengths, fd = array("L", [len(frame)]), -1
        while last.more:
            last = self._pull.recv(copy=False)
            lengths.append(len(last))
        with suppress(zmq.ZMQError):  # a connection in ZMTP 1 has no such metadata
            fd = int(frame.get(zmq.SRCFD))
        if self._guard:
            self._guard.delivered(fd, lengths)
        event = parse(frame.bytes) if len(lengths) == 1 else None
        if event is None or not 0 <= event.peer < self._peers:
            self._refused["no-report"] += 1
            return None
        if self._keys and frame.get("User-Id") != str(event.peer):
            self._refused["impostor"] += 1
            return None
        if self._guard:
            self._guard.identified(fd, event.peer)
        return event

    def refused(self) -> dict[str, int]:
        """Count what was dropped, by reason, since the start."""
        counted = self._refused + Counter(self._guard.refused() if self._guard else {})
        if self._gate:
            counted["unknown-key"] += self._gate.unknown
        return dict(+counted)

    def close(self) -> None:
        """Close everything."""
        self._pull.disable_monitor()
        self._pull.close()
        if self._guard:
            self._guard.join()
        if self._gate:
            self._gate.stop()
        self._context.term()
