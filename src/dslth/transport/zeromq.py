"""Peers over TCP: one ROUTER listens, one DEALER goes to each neighbour, so a directed edge is one connection."""

import platform
import socket
import struct
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import zmq
from zmq.utils.monitor import recv_monitor_message

from dslth.errors import AddressError
from dslth.transport.base import Delivery, LinkBytes

__all__ = ["ZeroMqTransport"]

QUEUE = 16
"""Messages kept for or from one neighbour at most; a peer is never more than a round ahead of another."""
HEARTBEAT_MS = 5_000
LINGER_MS = 2_000
RECONNECT_MS = (100, 2_000)

# Offsets in Linux's struct tcp_info (include/uapi/linux/tcp.h): append-only, so they hold on every kernel since 4.19.
_BYTES_RECEIVED, _BYTES_SENT, _BYTES_RETRANSMITTED = 128, 200, 208
_TCP_INFO_SIZE = 216


class _Route(NamedTuple):
    """Where a delivery came from: the ROUTER's name for the connection, and the connection's file descriptor."""

    name: bytes
    fd: int


class _Connection:
    """The kernel's byte counters of one TCP connection, read by its file descriptor, which libzmq owns.

    libzmq may close the descriptor at any time and the number may come back as another connection; the addresses at
    both ends tell. What was read last stays.
    """

    def __init__(self, fd: int) -> None:
        self.fd, self.sent, self.received = fd, 0, 0
        self.ends: tuple[tuple[str, int], tuple[str, int]] | None = None
        self.refresh()

    def refresh(self) -> None:
        try:
            borrowed = socket.socket(fileno=self.fd)
        except OSError:
            return
        try:
            ends = borrowed.getsockname()[:2], borrowed.getpeername()[:2]
            self.ends = self.ends or ends
            if ends == self.ends:
                info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                if len(info) >= _TCP_INFO_SIZE:
                    sent, again = struct.unpack_from("=QQ", info, _BYTES_SENT)
                    self.sent = sent - again
                    (self.received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
        except OSError:
            pass  # closed between two calls
        finally:
            borrowed.detach()


def _port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


class ZeroMqTransport:
    """One peer's sockets; see Transport. ``max_message`` bounds a frame: libzmq cuts off whoever sends more."""

    def __init__(self, max_message: int) -> None:
        self._context = zmq.Context()
        self._max_message = max_message
        self._router = self._socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer to someone gone is an error, not a silent loss
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 0)  # connections are named by us: no one can take another's name
        self._dealers: dict[int, zmq.Socket[bytes]] = {}
        self._monitors: dict[int, zmq.Socket[bytes]] = {}
        self._connections: dict[int, list[_Connection]] = {}
        self._connected: Counter[int] = Counter()
        self._reconnected: list[int] = []
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)

    def _socket(self, kind: int) -> "zmq.Socket[bytes]":
        made = self._context.socket(kind)
        made.setsockopt(zmq.LINGER, LINGER_MS)
        made.setsockopt(zmq.SNDHWM, QUEUE)
        made.setsockopt(zmq.RCVHWM, QUEUE)
        made.setsockopt(zmq.MAXMSGSIZE, self._max_message)
        made.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        made.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        made.setsockopt(zmq.HEARTBEAT_TTL, 3 * HEARTBEAT_MS)
        made.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS[0])
        made.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS[1])
        return made

    def listen(self, address: str) -> str:
        try:
            self._router.bind(address)
        except zmq.ZMQError as error:
            hint = (
                "end the program that uses it or change 'network'" if error.errno == zmq.EADDRINUSE else "see 'network'"
            )
            raise AddressError(
                f"cannot listen on {address}: {zmq.strerror(error.errno or 0).lower()}; {hint}"
            ) from None
        return self._router.getsockopt_string(zmq.LAST_ENDPOINT)

    def connect(self, neighbour: int, address: str) -> None:
        dealer = self._socket(zmq.DEALER)
        monitor = self._context.socket(zmq.PAIR)
        monitor.setsockopt(zmq.LINGER, 0)
        dealer.monitor(f"inproc://monitor-{neighbour}", zmq.EVENT_CONNECTED)
        monitor.connect(f"inproc://monitor-{neighbour}")
        try:
            dealer.connect(address)
        except zmq.ZMQError as error:
            raise AddressError(f"peer {neighbour} cannot be at {address}: {zmq.strerror(error.errno or 0)}") from None
        self._dealers[neighbour], self._monitors[neighbour] = dealer, monitor
        self._connections.setdefault(neighbour, [])
        self._poller.register(dealer, zmq.POLLIN)
        self._poller.register(monitor, zmq.POLLIN)

    def send(self, neighbour: int, frames: Sequence[bytes]) -> bool:
        try:
            self._dealers[neighbour].send_multipart(frames, zmq.NOBLOCK)
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
        if any(monitor in ready for monitor in self._monitors.values()):
            self._read_monitors()
        if self._router in ready:
            name, *frames = self._router.recv_multipart(copy=False)
            try:
                fd = int(frames[0].get(zmq.SRCFD)) if frames else -1
            except zmq.ZMQError:  # whoever speaks ZMTP 1 leaves no such word
                fd = -1
            return Delivery([frame.bytes for frame in frames], _Route(name.bytes, fd))
        for neighbour, dealer in self._dealers.items():
            if dealer in ready:
                return Delivery(dealer.recv_multipart(), None, answer_of=neighbour)
        self.link_bytes()  # a moment to spare: a neighbour that leaves takes its connection's counters along
        return None

    def reconnected(self) -> list[int]:
        again, self._reconnected = self._reconnected, []
        return again

    def _read_monitors(self) -> None:
        for neighbour, monitor in self._monitors.items():
            while monitor.poll(0):
                event = recv_monitor_message(monitor)
                self._track(neighbour, int(event["value"]), there=_port(event["endpoint"].decode()))
                if self._connected[neighbour]:
                    self._reconnected.append(neighbour)
                self._connected[neighbour] += 1

    def identify(self, route: Hashable, neighbour: int) -> None:
        if isinstance(route, _Route):
            self._track(neighbour, route.fd, here=_port(self._router.getsockopt_string(zmq.LAST_ENDPOINT)))

    def _track(self, neighbour: int, fd: int, here: int | None = None, there: int | None = None) -> None:
        """Count a connection to a neighbour, unless it is gone by now and its descriptor another connection's."""
        if fd < 0:
            return
        connection = _Connection(fd)
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
            for connection in connections:
                connection.refresh()
            totals[neighbour] = LinkBytes(sum(c.sent for c in connections), sum(c.received for c in connections))
        return totals

    def close(self) -> None:
        for dealer in self._dealers.values():
            dealer.disable_monitor()
        for made in (self._router, *self._dealers.values(), *self._monitors.values()):
            made.close()
        self._context.term()
