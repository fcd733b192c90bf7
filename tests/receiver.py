"""Reads a message as a peer does, for tests that send garbage."""

import numpy as np

from dslth import wire
from dslth.coding.forecast import Forecast
from dslth.coding.history import History
from dslth.wire import Kind

SIZES = (24, 13)
DIGEST = bytes(range(16))
ME = wire.Hello(DIGEST, SIZES, (12, 6))
HISTORY = History(Forecast([np.zeros(n, np.float32) for n in SIZES], ME.ones))


def read(message):
    """What a peer does with a message, as far as reading it goes."""
    frames = wire.split(message)
    header = wire.read_header(frames, wire.max_payload(SIZES))
    match header.kind:
        case Kind.HELLO | Kind.WELCOME:
            return wire.read_hello(frames[1])
        case Kind.REFUSED:
            return wire.read_refusal(frames[1])
        case Kind.MASK:
            return wire.read_mask(header, frames[1], ME, HISTORY)
    return header
