"""How a mask becomes a payload: one registry by wire id, every encoder with its decoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dslth.masks import BitMask

__all__ = ["BITPACK", "BY_ID", "BY_NAME", "Codec"]


@dataclass(frozen=True)
class Codec:
    """A pair of inverse functions.

    ``encode(mask)`` gives the payload; ``decode(payload, sizes)`` the mask of layers of these sizes, or ValueError
    where the payload is not exactly what the encoder gives for some mask.
    """

    wire_id: int
    name: str
    encode: Callable[[BitMask], bytes]
    decode: Callable[[bytes, Sequence[int]], BitMask]


BITPACK = Codec(wire_id=0, name="bitpack", encode=BitMask.pack, decode=BitMask.unpack)
"""One bit per weight; layers in order, each padded to a byte."""

_CODECS = (BITPACK,)
BY_ID = {codec.wire_id: codec for codec in _CODECS}
BY_NAME = {codec.name: codec for codec in _CODECS}
if not len(BY_ID) == len(BY_NAME) == len(_CODECS):
    raise AssertionError("two codecs share a wire id or a name")
