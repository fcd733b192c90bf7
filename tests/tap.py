"""A TCP relay that keeps what passes, and reads it as ZMTP: an independent count of what peers say of their bytes."""

import contextlib
import socket
import threading


def free_ports(n):
    """Find n neighbouring free ports, so that ``base_port`` can be written down."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            base = probe.getsockname()[1]
        if base + n > 65535:
            continue
        try:
            for port in range(base, base + n):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base


GREETING = 64
MORE_OR_LESS = 1 << 16


class Tap:
    """Relays connections to a port; ``streams`` holds the bytes of each connection and direction."""

    def __init__(self, target_port):
        self.target_port = target_port
        self.streams = []
        self._sockets = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            try:
                outer = socket.create_connection(("127.0.0.1", self.target_port))
            except OSError:  # the peer does not listen yet; its neighbour will try again
                inner.close()
                continue
            self._sockets += [inner, outer]
            for source, sink in ((inner, outer), (outer, inner)):
                stream = bytearray()
                self.streams.append(stream)
                thread = threading.Thread(target=self._relay, args=(source, sink, stream))
                self._threads.append(thread)
                thread.start()

    @staticmethod
    def _relay(source, sink, stream):
        try:
            while chunk := source.recv(MORE_OR_LESS):
                stream += chunk
                sink.sendall(chunk)
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def cut(self):
        """Break all connections, as a failing network would."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)
        for one in self._sockets:
            one.close()

    @property
    def total(self):
        return sum(map(len, self.streams))

    def message_bytes(self):
        """Add up the lengths of all message frames (ZMTP 3: a flags byte, a length of 1 or 8 bytes, the body)."""
        return sum(len(body) for stream in self.streams for body in message_frames(bytes(stream)))

    def frames(self):
        return [body for stream in self.streams for body in message_frames(bytes(stream))]


def message_frames(stream):
    at = GREETING
    while at < len(stream):
        flags = stream[at]
        is_long, is_command = flags & 2, flags & 4
        size = int.from_bytes(stream[at + 1 : at + (9 if is_long else 2)], "big")
        at += 9 if is_long else 2
        if not is_command:
            yield stream[at : at + size]
        at += size
