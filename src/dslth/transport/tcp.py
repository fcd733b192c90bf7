"""What the kernel knows about a TCP connection whose file descriptor libzmq owns."""

import errno
import fcntl
import os
import socket
import struct
import termios

__all__ = ["Connection"]

# Offsets in Linux's struct tcp_info (include/uapi/linux/tcp.h): append-only, so they hold on every kernel since 4.19.
_BYTES_RECEIVED, _BYTES_SENT, _BYTES_RETRANSMITTED = 128, 200, 208
_TCP_INFO_SIZE = 216


class Connection:
    """One TCP connection; ``sent`` and ``received`` are the kernel's byte counters, ``taken`` what libzmq has read.

    libzmq may close the descriptor at any time, and its number may become another connection's; the addresses at both
    ends show that. The counters that were read last stay.
    """

    def __init__(self, fd: int) -> None:
        self.fd, self.sent, self.received, self.taken = fd, 0, 0, 0
        self.ends: tuple[tuple[str, int], tuple[str, int]] | None = None
        self.refresh()

    def refresh(self) -> bool:
        """Read the counters; False if the connection is gone."""
        try:
            with self._lent() as lent:
                info = lent.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                (waiting,) = struct.unpack("=i", fcntl.ioctl(lent, termios.FIONREAD, bytes(4)))
        except OSError as error:
            return error.errno in (errno.EMFILE, errno.ENFILE)  # no free descriptor to check with: it may be open
        if len(info) >= _TCP_INFO_SIZE:
            sent, again = struct.unpack_from("=QQ", info, _BYTES_SENT)
            self.sent = sent - again
            (self.received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
            self.taken = max(self.taken, self.received - waiting)
        return True

    def cut(self) -> bool:
        """End the connection: both ends see it closed, the other one at once even if its window is full.

        Return False if there is no free descriptor to do it with.
        """
        try:
            with self._lent() as lent:
                lent.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                lent.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            return error.errno not in (errno.EMFILE, errno.ENFILE)
        return True

    def _lent(self) -> socket.socket:
        """Open the connection with a descriptor of our own, which stays valid whatever libzmq does.

        Raises OSError if it is gone or reset.
        """
        own = os.dup(self.fd)
        try:
            lent = socket.socket(fileno=own)
        except OSError:
            os.close(own)
            raise
        try:
            if lent.family not in (socket.AF_INET, socket.AF_INET6):
                raise ConnectionError("the descriptor now belongs to another kind of socket")
            ends = lent.getsockname()[:2], lent.getpeername()[:2]
            self.ends = self.ends or ends
            if ends != self.ends:
                raise ConnectionError("the descriptor now belongs to another connection")
        except OSError:
            lent.close()
            raise
        return lent
