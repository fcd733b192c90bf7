"""Coverage-guided fuzzing of all that reads what comes from the network; -max_total_time=60 bounds it.

The first byte says which reader gets the rest. None may raise anything but Refused, and codecs but ValueError.
"""

import sys
from contextlib import suppress

import atheris

with atheris.instrument_imports(include=["dslth"]):
    from dslth import wire
    from dslth.coding import codecs
    from dslth.wire import Kind, Refused
    from receiver import HISTORY, ME, read


def mask(data):
    header = wire.Header(wire.VERSION, Kind.MASK, 0, 1, 3, 0, data[0] % 5, 0, 0)
    wire.read_mask(header, data[1:], ME, HISTORY)


READERS = [read, mask, wire.read_hello, wire.read_refusal]


def one_input(data):
    if len(data) < 2:
        return
    which, rest = data[0], data[1:]
    if which < 128:
        with suppress(Refused):
            READERS[which % len(READERS)](rest)
    else:
        with suppress(ValueError):
            codecs.BY_ID[sorted(codecs.BY_ID)[which % len(codecs.BY_ID)]].decode(rest, HISTORY)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
