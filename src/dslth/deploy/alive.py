"""A peer's health check: ``python -m dslth.deploy.alive PORT`` ends with 0 where ZeroMQ answers on that port.

It reads the ten bytes that ZMTP greets every connection with, before any key or hello, and imports nothing heavy:
a container's engine starts it every few seconds.
"""

import socket
import sys

__all__ = ["greets"]

SIGNATURE = 10
"""Length of ZMTP's signature: FF, eight bytes that do not matter, 7F."""


def greets(port: int, seconds: float = 3.0) -> bool:
    """Tell whether a peer of this machine, or container, greets whoever connects."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
            greeting = connection.recv(SIGNATURE, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(greeting) == SIGNATURE and greeting[0] == 0xFF and greeting[-1] == 0x7F


if __name__ == "__main__":
    sys.exit(not greets(int(sys.argv[1])))
