"""What peers send each other, and every check on what comes in.

A message is a header followed by a payload. The header is a msgpack array in this fixed order:

=========  ========================================================================================================
version    of this format
kind       hello, welcome, refused, mask, bye, ask, tell, lost
tag        first 32 bits of the run digest
sender     id of the peer that speaks
round      the round it is in, from 0
held       what the sender holds of the receiver's masks: 0 nothing, else 1 + its own round - the mask's round;
           in a bye: 1 where the sender has heard the receiver's
codec      wire id of the payload's codec; 0 if the payload is not a mask
depth      mask: how many earlier masks it builds on, 1 to 127 and 1 again; 0: none, it is a key frame
           lost: how many masks the newest that is held builds on, itself included, in the same form
           hello, ask, tell: the newest mask that the receiver was sent: 0 none, else 1 + own round - the mask's round
check      CRC-32 over the fields above and what the payload stands for: the mask's packed form, else the payload
=========  ========================================================================================================

A hello opens an edge in each direction, and again after a broken connection. It carries the run digest and the layout
of the sender's masks, which mask messages then need not repeat. Its answer, on the same connection, is a welcome with
the same content, or a refusal with the settings of the refusing peer, so that the refused peer can say what differs.

A peer that waits long sends ``ask``, and gets a ``tell``; the payload of ``ask``, ``tell`` and ``lost`` is empty. TCP
keeps the order on a connection: a mask that a ``tell`` names and that has not come before it is lost, not merely late.
Only what was lost is sent again.

Nothing that arrives is trusted: lengths are checked before contents, types before values, and anything wrong raises
Refused with one of the named reasons. The reading functions raise nothing but Refused, whatever the bytes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from math import sqrt
from typing import Any, NamedTuple, NoReturn
from zlib import crc32

import msgpack

from dslth.coding.codecs import by_id
from dslth.coding.history import History
from dslth.config import full_address
from dslth.masks import BitMask, packed_size

__all__ = [
    "MAX_CONTROL",
    "MAX_HEADER",
    "VERSION",
    "Frames",
    "Header",
    "Hello",
    "Kind",
    "Refusal",
    "Refused",
    "bye",
    "differences",
    "hello",
    "is_of",
    "lost",
    "mask_header",
    "max_message",
    "max_payload",
    "read_header",
    "read_hello",
    "read_mask",
    "read_refusal",
    "refusal",
    "run_digest",
    "short_depth",
    "split",
    "tag",
    "word",
]

VERSION = 4
MAX_HEADER = 64
"""Bytes of a header at most (in practice 16 to 24)."""
MAX_CONTROL = 16384
"""Bytes of a payload that is not a mask, at most."""
MAX_ADDRESS = 255
"""Characters of an address at most."""
_MAX_FIELD = 2**32 - 1

Frames = tuple[bytes, bytes]
"""A message's header and payload; ``b"".join`` makes it whole, ``split`` takes it apart."""


class Kind(IntEnum):
    """The kinds of message."""

    HELLO = 0
    WELCOME = 1
    REFUSED = 2
    MASK = 3
    BYE = 4
    ASK = 5
    TELL = 6
    LOST = 7


class Refusal(StrEnum):
    """Why a message was refused; the report counts them by these names."""

    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    WRONG_VERSION = "wrong-version"
    WRONG_RUN = "wrong-run"
    WRONG_ADDRESS = "wrong-address"
    STRANGER = "stranger"
    IMPOSTOR = "impostor"
    NO_HELLO = "no-hello"
    UNKNOWN_BASE = "unknown-base"
    STALE = "stale"
    FUTURE = "future"
    DUPLICATE = "duplicate"
    UNKNOWN_CODEC = "unknown-codec"
    WRONG_DENSITY = "wrong-density"
    CORRUPT = "corrupt"


class Refused(Exception):  # noqa: N818  (it is a verdict on a message, not an error of the program)
    """A message is refused, and why."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Header(NamedTuple):
    """A message's header, field for field."""

    version: int
    kind: int
    tag: int
    sender: int
    round: int
    held: int
    codec: int
    depth: int
    check: int

    @property
    def acknowledged(self) -> int | None:
        """The round of the receiver's newest mask that the sender holds."""
        return self._ago(self.held)

    @property
    def sent(self) -> int | None:
        """The round of the sender's newest mask that the receiver was sent, in a hello, an ask or a tell."""
        return self._ago(self.depth)

    def _ago(self, field: int) -> int | None:
        return self.round - (field - 1) if 0 < field <= self.round + 1 else None


@dataclass(frozen=True)
class Hello:
    """Who a peer is: its run, and its masks' weights (``sizes``) and ones (``ones``) in each layer.

    ``address`` is where it listens, empty where that is what the topology says.
    """

    digest: bytes
    sizes: tuple[int, ...]
    ones: tuple[int, ...]
    address: str = ""


def run_digest(identity: Mapping[str, str]) -> bytes:
    """Return 16 bytes of a SHA-256 over all that peers of a run must share, and over this wire format."""
    text = "\n".join(f"{key}={value}" for key, value in sorted(identity.items()))
    return hashlib.sha256(f"dslth {VERSION}\n{text}".encode()).digest()[:16]


def max_payload(sizes: Sequence[int]) -> int:
    """Return the most bytes that a payload may have in a run with masks of these layer sizes."""
    return max(packed_size(sizes) + 1, MAX_CONTROL)


def max_message(largest: int) -> int:
    """Return the most bytes that a message may have in a run whose payloads have ``largest`` bytes at most."""
    return MAX_HEADER + largest


# --- writing --------------------------------------------------------------------------------------------------------


def hello(kind: Kind, me: Hello, sender: int, round_: int, held: int | None = None, sent: int | None = None) -> Frames:
    """Write a hello or a welcome.

    ``held`` is the round of the receiver's newest mask that the sender holds, ``sent`` that of the sender's newest that
    the receiver was sent.
    """
    content = msgpack.packb([me.digest, list(me.sizes), list(me.ones), me.address])
    return _sealed(kind, me.digest, sender, round_, content, depth=_ago(round_, sent), held=held), content


def word(kind: Kind, digest: bytes, sender: int, round_: int, held: int | None, sent: int | None) -> Frames:
    """Write an ask or a tell; ``held`` and ``sent`` as in a hello."""
    return _sealed(kind, digest, sender, round_, b"", depth=_ago(round_, sent), held=held), b""


def lost(digest: bytes, sender: int, round_: int, held: int | None, depth: int) -> Frames:
    """Write that what came after the mask of round ``held`` is lost; that one is the ``depth``-th of its chain."""
    return _sealed(Kind.LOST, digest, sender, round_, b"", depth=short_depth(depth), held=held), b""


def refusal(digest: bytes, sender: int, round_: int, identity: Mapping[str, str]) -> Frames:
    """Write the answer to a hello of another run: this peer's own settings."""
    content = msgpack.packb(dict(identity))
    return _sealed(Kind.REFUSED, digest, sender, round_, content), content


def bye(digest: bytes, sender: int, round_: int, *, heard: bool = False) -> Frames:
    """Write that a peer leaves after this round; ``heard``: it has heard the receiver's bye."""
    return _sealed(Kind.BYE, digest, sender, round_, b"", held=round_ if heard else None), b""


def mask_header(
    digest: bytes, sender: int, round_: int, packed: bytes, codec: int, depth: int, held: int | None
) -> bytes:
    """Write the header of a mask message; ``packed`` is the mask's packed form, whatever the payload is."""
    return _sealed(Kind.MASK, digest, sender, round_, packed, codec, short_depth(depth), held)


def short_depth(depth: int) -> int:
    """Return a depth as the header writes it: one byte that tells neighbouring depths, and key frames, apart."""
    return (depth - 1) % 127 + 1 if depth else 0


def _sealed(
    kind: Kind,
    digest: bytes,
    sender: int,
    round_: int,
    content: bytes,
    codec: int = 0,
    depth: int = 0,
    held: int | None = None,
) -> bytes:
    fields = (
        VERSION,
        int(kind),
        tag(digest),
        sender,
        round_,
        _ago(round_, held),
        codec,
        depth,
    )
    packed: bytes = msgpack.packb((*fields, _check(fields, content)))
    return packed


def _ago(round_: int, earlier: int | None) -> int:
    return 0 if earlier is None else max(1, 1 + round_ - earlier)


def tag(digest: bytes) -> int:
    """Return the first 32 bits of a run digest, which every header carries."""
    return int.from_bytes(digest[:4], "big")


def _check(fields: Sequence[int], content: bytes) -> int:
    return crc32(content, crc32(msgpack.packb(list(fields))))


# --- reading --------------------------------------------------------------------------------------------------------


def split(message: bytes | None) -> Frames:
    """Take a message apart; it is None where it came in more than one frame."""
    if message is None:
        _refuse(Refusal.MALFORMED)
    unpacker = msgpack.Unpacker(max_buffer_size=MAX_HEADER)
    unpacker.feed(message[:MAX_HEADER])
    try:
        unpacker.skip()
    except (ValueError, msgpack.UnpackException):
        _refuse(Refusal.MALFORMED)
    end = unpacker.tell()
    return message[:end], message[end:]


def read_header(frames: Frames, largest: int) -> Header:
    """Read the header of a message in a run whose payloads have ``largest`` bytes at most."""
    if len(frames[0]) > MAX_HEADER or len(frames[1]) > largest:
        _refuse(Refusal.OVERSIZED)
    fields = _unpack(frames[0])
    if type(fields) is not list or len(fields) != len(Header._fields):
        _refuse(Refusal.MALFORMED)
    if not all(type(field) is int and 0 <= field <= _MAX_FIELD for field in fields):
        _refuse(Refusal.MALFORMED)
    header = Header(*fields)
    if header.version != VERSION:
        _refuse(Refusal.WRONG_VERSION)
    if header.kind not in list(Kind):
        _refuse(Refusal.MALFORMED)
    if header.kind != Kind.MASK:
        _verify(header, frames[1])
    return header


def read_hello(payload: bytes) -> Hello:
    """Read the payload of a hello or a welcome."""
    content = _unpack(payload)
    if type(content) is not list or len(content) != 4:
        _refuse(Refusal.MALFORMED)
    digest, sizes, ones, address = content
    if type(digest) is not bytes or len(digest) != 16 or type(sizes) is not list or type(ones) is not list:
        _refuse(Refusal.MALFORMED)
    if len(sizes) != len(ones) or not all(type(n) is int and 0 <= n <= _MAX_FIELD for n in (*sizes, *ones)):
        _refuse(Refusal.MALFORMED)
    if any(kept > n for kept, n in zip(ones, sizes, strict=True)):
        _refuse(Refusal.WRONG_DENSITY)
    if type(address) is not str or len(address) > MAX_ADDRESS:
        _refuse(Refusal.MALFORMED)
    try:
        if address and full_address(address) != address:
            _refuse(Refusal.WRONG_ADDRESS)
    except ValueError:
        _refuse(Refusal.WRONG_ADDRESS)
    return Hello(digest, tuple(sizes), tuple(ones), address)


def read_refusal(payload: bytes) -> dict[str, str]:
    """Read the settings that a refusing peer sends."""
    content = _unpack(payload)
    if type(content) is not dict or not all(type(text) is str for item in content.items() for text in item):
        _refuse(Refusal.MALFORMED)
    return dict(content)


def read_mask(
    header: Header, payload: bytes, sender: Hello, history: History, *, fewer: bool = False, flip: float = 0.0
) -> BitMask:
    """Read a mask of a sender that has said hello, given the history of its masks.

    ``fewer`` ones than the hello says are possible with structured removal; with randomised response each bit is
    flipped with probability ``flip``.
    """
    codec = by_id(header.codec)
    if codec is None:
        _refuse(Refusal.UNKNOWN_CODEC)
    try:
        mask = codec.decode(payload, history)
    except ValueError:
        _refuse(Refusal.CORRUPT)
    for got, ones, n in zip(mask.ones, sender.ones, sender.sizes, strict=True):
        noise = 8 * sqrt(n * flip * (1 - flip))  # eight standard deviations: never by chance
        most, least = ones + flip * (n - 2 * ones), 0.0 if fewer else ones + flip * (n - 2 * ones)
        if not least - noise <= got <= most + noise:
            _refuse(Refusal.WRONG_DENSITY)
    _verify(header, mask.pack())
    return mask


def is_of(header: Header, packed: bytes) -> bool:
    """Return whether a message, not decoded, carries the mask with this packed form."""
    return header.check == _check(header[:-1], packed)


def differences(mine: Mapping[str, str], theirs: Mapping[str, str], limit: int = 3) -> str:
    """Return in words which settings of two runs differ."""
    keys = [key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]
    said = [
        f"{key:.60} is {mine.get(key, 'not set')} here and {theirs.get(key, 'not set')!s:.60} there" for key in keys
    ]
    more = f" (and {len(keys) - limit} more)" if len(keys) > limit else ""
    return (", ".join(said[:limit]) or "the version of dslth differs") + more


def _verify(header: Header, content: bytes) -> None:
    if not is_of(header, content):
        _refuse(Refusal.CORRUPT)


def _unpack(frame: bytes) -> Any:
    try:
        return msgpack.unpackb(frame)
    except (ValueError, msgpack.UnpackException):
        _refuse(Refusal.MALFORMED)


def _refuse(reason: Refusal) -> NoReturn:
    raise Refused(reason) from None
