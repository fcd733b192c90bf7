"""A CIFAR-10 batch from its pickle, without unpickling: nothing that the file asks for is looked up, called or built.

Its opcodes are read one by one. Numbers, texts and containers become what they stand for; a call is only described, and
the description compared with the calls in a real batch. Anything that a real batch does not contain is refused.
"""

import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["read_batch"]

MOST_OPCODES = 1_000_000
"""An official batch of 10,000 images takes some 30,000."""


class _Name(StrEnum):
    """All that a batch may name; texts of the file are bytes here and never equal one of these."""

    RECONSTRUCT = "numpy.core.multiarray _reconstruct"
    RECONSTRUCT_2 = "numpy._core.multiarray _reconstruct"  # as numpy 2 calls it
    NDARRAY = "numpy ndarray"
    DTYPE = "numpy dtype"
    ENCODE = "_codecs encode"  # how Python 3 writes the bytes of Python 2


@dataclass
class _Call:
    """A call that is never made, and the state that its result would be given."""

    name: _Name
    arguments: Any
    state: Any = None


@dataclass
class _Dict:
    """A dictionary, as alternating keys and values."""

    items: list[Any] = field(default_factory=list)


def read_batch(content: bytes, width: int) -> tuple[bytes, list[int]]:
    """Read the bytes of ``data``, a uint8 array of ``width`` columns, and ``labels``, a whole number for each row.

    Protocols 2 to 4: as Python 2 and its numpy wrote the official files, or as later versions wrote them again.

    Raises ValueError, which says what is wrong and at which byte, but does not quote the file.
    """
    batch = _Machine().run(content)
    found = dict(zip(batch.items[::2], batch.items[1::2], strict=True)) if _is_named(batch) else {}
    labels = found.get(b"labels")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError("it holds no list of labels")
    match found.get(b"data"):
        case _Call(
            _Name.RECONSTRUCT | _Name.RECONSTRUCT_2,
            (_Name.NDARRAY, (0,), b"b"),
            (
                1,
                (rows, columns),
                _Call(_Name.DTYPE, (b"u1", 0, 1), (3, b"|", None, None, None, -1, -1, 0)),
                False,
                bytes(data),
            ),
        ) if (rows, columns, len(data)) == (len(labels), width, len(labels) * width):
            return data, labels
    raise ValueError(f"it holds no array of bytes with {width} for each label")


def _is_named(batch: Any) -> bool:
    return isinstance(batch, _Dict) and all(type(key) is bytes for key in batch.items[::2])


class _Machine:
    """What the opcodes work on: a stack, the stacks below its marks, and the memo."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        """Follow a pickle to its end; return what it stands for."""
        at = 0
        try:
            for number, (opcode, argument, position) in enumerate(pickletools.genops(content)):
                at = position or 0
                if opcode.name == "STOP":
                    return self._stack.pop()
                if number >= MOST_OPCODES or opcode.name not in _OPCODES:
                    raise ValueError
                _OPCODES[opcode.name](self, argument)
        except _AsksForCodeError:
            wrong = "it asks for code to be run"
        except Exception:  # pickletools raises almost anything where a file is damaged
            wrong = "it is damaged, or something else"
        raise ValueError(f"{wrong}, at byte {at}")

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def text(self, text: str) -> None:
        """Put a text on the stack as bytes, whatever kind of text it is."""
        self._stack.append(text.encode("latin-1"))

    def mark(self) -> None:
        """Begin a container."""
        self._below.append(self._stack)
        self._stack = []

    def marked(self) -> list[Any]:
        """Take everything since the last mark."""
        taken, self._stack = self._stack, self._below.pop()
        return taken

    def taken(self, count: int) -> tuple[Any, ...]:
        """Take the last few values."""
        return tuple(reversed([self._stack.pop() for _ in range(count)]))

    def extend(self, values: Sequence[Any]) -> None:
        """Add to the list on top."""
        into = self._stack[-1]
        if type(into) is not list:
            raise TypeError
        into.extend(values)

    def fill(self, items: Sequence[Any]) -> None:
        """Add alternating keys and values to the dictionary on top."""
        into = self._stack[-1]
        if not isinstance(into, _Dict) or len(items) % 2:
            raise TypeError
        into.items.extend(items)

    def keep(self, place: int | None) -> None:
        """Remember what is on top, at a place in the memo; by default the next one."""
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def get(self, place: int) -> None:
        """Put a remembered value on the stack."""
        self.push(self._memo[place])

    def name(self, words: str) -> None:
        """Put one of the known names on the stack."""
        try:
            self.push(_Name(words))
        except ValueError:
            raise _AsksForCodeError from None

    def reduce(self) -> None:
        """Describe a call; one that only encodes a text, as Python 3 writes Python 2's bytes, becomes those bytes."""
        name, arguments = self.taken(2)
        match name, arguments:
            case _Name.ENCODE, (bytes(text), b"latin1"):
                self.push(text)
            case _Name(), _:
                self.push(_Call(name, arguments))
            case _:
                raise _AsksForCodeError

    def build(self) -> None:
        """Describe the state that a call's result is given."""
        (state,) = self.taken(1)
        call = self._stack[-1]
        if not isinstance(call, _Call):
            raise _AsksForCodeError
        call.state = state


class _AsksForCodeError(Exception):
    """The pickle asks for a call that no batch contains."""


_OPCODES: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINBYTES", "SHORT_BINBYTES"), _Machine.push),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE"), _Machine.text),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push(_Dict()),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.push(machine.taken(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.taken(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.taken(3)),
    "APPEND": lambda machine, _: machine.extend(machine.taken(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "SETITEM": lambda machine, _: machine.fill(machine.taken(2)),
    "SETITEMS": lambda machine, _: machine.fill(machine.marked()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.keep),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": lambda machine, _: machine.name(b" ".join(machine.taken(2)).decode("latin-1")),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
