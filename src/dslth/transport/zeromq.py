"""Peers over TCP: one ROUTER listens, one DEALER goes to each neighbour, so a directed edge is one connection."""

import platform
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import NamedTuple

import zmq
from zmq.utils.monitor import recv_monitor_message

from dslth.errors import AddressError
from dslth.keys import Keys
from dslth.transport import guard
from dslth.transport.base import Delivery, LinkBytes
from dslth.transport.tcp import Connection
from dslth.transport.zap import DOMAIN, Gate

__all__ = ["ZeroMqTransport"]

QUEUE = 16
"""Messages kept for or from one neighbour at most; a peer is never more than a round ahead of another."""
HEARTBEAT_MS = 5_000
HANDSHAKE_MS = 10_000
"""How long a connection may take until it speaks ZMTP; a process that is stopped accepts TCP and no more."""
LINGER_MS = 2_000
RECONNECT_MS = (100, 2_000)
ENCRYPTION = 64
"""Bytes that CURVE adds to a frame, at most (in practice 33)."""
HELD = QUEUE + 4
"""Largest messages that a connection may have waiting here, the one that is not whole yet among them."""


class _Route(NamedTuple):
    """Where a delivery came from: the ROUTER's name for the connection, and the connection's file descriptor."""

    name: bytes
    fd: int


class _Line:
    """The DEALER to one neighbour and its monitor; ``up``: the handshake is done and the connection not broken."""

    def __init__(self, dealer: "zmq.Socket[bytes]", monitor: "zmq.Socket[bytes]") -> None:
        self.dealer, self.monitor = dealer, monitor
        self.up = self.was_up = False


def _port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


class ZeroMqTransport:
    """One peer's sockets; see Transport.

    ``max_message`` bounds a frame: libzmq cuts off whoever sends more. With ``keys`` every connection is encrypted and
    proves at both ends who it is (CURVE); without them anyone may connect. ``refused`` counts by ``unknown-key``,
    ``no-key``, ``bad-handshake``, ``broken-off``, ``flood`` and ``too-many-connections``.
    """

    def __init__(self, max_message: int, keys: Keys | None = None) -> None:
        self.authenticated = keys is not None
        self._context = zmq.Context()
        self._max_message = max_message + ENCRYPTION
        self._keys = keys
        self._gate = Gate(self._context, keys.neighbours) if keys else None
        self._guard: guard.Guard | None = None
        self._router = self._socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer to someone gone is an error, not a silent loss
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 0)  # connections are named by us: no one can take another's name
        if keys:
            self._router.setsockopt(zmq.CURVE_SERVER, 1)
            self._router.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
            self._router.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)
            self._router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without the gate nobody comes in
        self._lines: dict[int, _Line] = {}
        self._names = count()
        self._connections: dict[int, list[Connection]] = {}
        self._past: dict[int, LinkBytes] = {}
        self._reconnected: list[int] = []
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)

    def _socket(self, kind: int) -> "zmq.Socket[bytes]":
        made = self._context.socket(kind)
        made.setsockopt(zmq.LINGER, LINGER_MS)
        made.setsockopt(zmq.SNDHWM, QUEUE)
        made.setsockopt(zmq.RCVHWM, QUEUE)
        made.setsockopt(zmq.MAXMSGSIZE, self._max_message)
        made.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        made.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        made.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        made.setsockopt(zmq.HEARTBEAT_TTL, 3 * HEARTBEAT_MS)
        made.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS[0])
        made.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS[1])
        return made

    def _monitor(self, watched: "zmq.Socket[bytes]", events: int) -> "zmq.Socket[bytes]":
        monitor = self._context.socket(zmq.PAIR)
        monitor.setsockopt(zmq.LINGER, 0)
        monitor.setsockopt(zmq.RCVHWM, 0)  # libzmq's own thread would wait for room
        name = f"inproc://monitor-{next(self._names)}"
        watched.monitor(name, events)
        monitor.connect(name)
        return monitor

    def listen(self, address: str) -> str:
        monitor = self._monitor(self._router, guard.EVENTS)
        try:
            self._router.bind(address)
        except zmq.ZMQError as error:
            self._router.disable_monitor()
            monitor.close()
            hint = (
                "end the program that uses it or change 'network'" if error.errno == zmq.EADDRINUSE else "see 'network'"
            )
            raise AddressError(
                f"cannot listen on {address}: {zmq.strerror(error.errno or 0).lower()}; {hint}"
            ) from None
        at = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._guard = guard.Guard(monitor, _port(at), HELD * self._max_message, keys=self.authenticated)
        return at

    def connect(self, neighbour: int, address: str) -> None:
        dealer = self._socket(zmq.DEALER)
        if self._keys:
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
            dealer.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
            dealer.setsockopt(zmq.CURVE_SERVERKEY, self._keys.neighbours[neighbour])
        monitor = self._monitor(dealer, zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        line = _Line(dealer, monitor)
        try:
            dealer.connect(address)
        except zmq.ZMQError as error:
            self._drop(line, linger=0)
            raise AddressError(f"peer {neighbour} cannot be at {address}: {zmq.strerror(error.errno or 0)}") from None
        if neighbour in self._lines:  # it listens elsewhere now
            self.link_bytes()
            old = self._lines[neighbour]
            self._poller.unregister(old.dealer)
            self._poller.unregister(old.monitor)
            self._drop(old, linger=0)
        self._lines[neighbour] = line
        if self._guard:
            self._guard.neighbours = len(self._lines)
        self._connections.setdefault(neighbour, [])
        self._poller.register(dealer, zmq.POLLIN)
        self._poller.register(monitor, zmq.POLLIN)

    @staticmethod
    def _drop(line: _Line, linger: int | None = None) -> None:
        line.dealer.disable_monitor()
        line.dealer.close(linger)
        line.monitor.close()

    def send(self, neighbour: int, frames: Sequence[bytes]) -> bool:
        try:
            self._lines[neighbour].dealer.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def answer(self, route: Hashable, frames: Sequence[bytes]) -> bool:
        if not isinstance(route, _Route):
            return False
        try:
            self._router.send_multipart([route.name, *frames], zmq.NOBLOCK)
        except zmq.ZMQError:  # gone (EHOSTUNREACH) or full (EAGAIN)
            return False
        return True

    def receive(self, timeout: float) -> Delivery | None:
        ready = dict(self._poller.poll(int(1000 * max(0.0, timeout))))
        if any(line.monitor in ready for line in self._lines.values()):
            self._read_monitors()
        if self._router in ready:
            return self._from_router()
        for neighbour, line in self._lines.items():
            if line.dealer in ready:
                speaker = neighbour if self._keys else None
                return Delivery(line.dealer.recv_multipart(), None, answer_of=neighbour, speaker=speaker)
        self.link_bytes()  # a moment to spare: a neighbour that leaves takes its connection's counters along
        return None

    def _from_router(self) -> Delivery:
        name, *frames = self._router.recv_multipart(copy=False)
        fd, speaker = -1, None
        if frames:
            with suppress(zmq.ZMQError):  # whoever speaks ZMTP 1 leaves no such words
                fd = int(frames[0].get(zmq.SRCFD))
                speaker = int(frames[0].get("User-Id")) if self._keys else None
        if self._guard:
            self._guard.delivered(fd)
        return Delivery([frame.bytes for frame in frames], _Route(name.bytes, fd), speaker=speaker)

    def reconnected(self) -> list[int]:
        again, self._reconnected = self._reconnected, []
        return again

    def _read_monitors(self) -> None:
        for neighbour, line in self._lines.items():
            while line.monitor.poll(0):
                event = recv_monitor_message(line.monitor)
                if event["event"] == zmq.EVENT_CONNECTED:
                    self._track(neighbour, int(event["value"]), there=_port(event["endpoint"].decode()))
                elif event["event"] == zmq.EVENT_DISCONNECTED:
                    line.up = False
                elif event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    if line.was_up:
                        self._reconnected.append(neighbour)
                    line.up = line.was_up = True

    def connected(self) -> frozenset[int]:
        self._read_monitors()
        return frozenset(neighbour for neighbour, line in self._lines.items() if line.up)

    def refused(self) -> Mapping[str, int]:
        counted = Counter(self._guard.refused() if self._guard else {})
        if self._gate:
            counted["unknown-key"] += self._gate.unknown
        return dict(+counted)

    def identify(self, route: Hashable, neighbour: int) -> None:
        if isinstance(route, _Route):
            if self._guard:
                self._guard.identified(route.fd)
            self._track(neighbour, route.fd, here=_port(self._router.getsockopt_string(zmq.LAST_ENDPOINT)))

    def _track(self, neighbour: int, fd: int, here: int | None = None, there: int | None = None) -> None:
        """Count a connection to a neighbour, unless it is gone by now and its descriptor another connection's."""
        if fd < 0:
            return
        connection = Connection(fd)
        known = [other.ends for connections in self._connections.values() for other in connections]
        if connection.ends is None or connection.ends in known:
            return
        if (here or there) == connection.ends[0 if here else 1][1]:
            self._connections.setdefault(neighbour, []).append(connection)

    def link_bytes(self) -> dict[int, LinkBytes] | None:
        if platform.system() != "Linux":
            return None
        self._read_monitors()
        totals = {}
        for neighbour, connections in self._connections.items():
            gone = [connection for connection in connections if not connection.refresh()]
            if gone:
                self._connections[neighbour] = [connection for connection in connections if connection not in gone]
                self._past[neighbour] = self._sum(neighbour, gone)
            totals[neighbour] = self._sum(neighbour, self._connections[neighbour])
        return totals

    def _sum(self, neighbour: int, connections: Sequence[Connection]) -> LinkBytes:
        past = self._past.get(neighbour, LinkBytes())
        return LinkBytes(
            past.sent + sum(connection.sent for connection in connections),
            past.received + sum(connection.received for connection in connections),
        )

    def close(self) -> None:
        if self._context.closed:
            return
        for line in self._lines.values():
            self._drop(line)
        self._router.disable_monitor()
        self._router.close()
        if self._guard:
            self._guard.join()
        if self._gate:
            self._gate.stop()
        self._context.term()
