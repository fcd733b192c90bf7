import contextlib
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dslth import wire
from dslth.coding.codecs import BITPACK
from dslth.coding.forecast import Forecast
from dslth.coding.history import History
from dslth.masks import BitMask, packed_size
from dslth.wire import Kind, Refusal, Refused

SIZES = (13, 64, 7)
DIGEST = bytes(range(16))
ids = st.integers(0, 2**16 - 1)
bits = st.tuples(*(st.lists(st.booleans(), min_size=n, max_size=n) for n in SIZES))


def mask_of(layers):
    return BitMask.from_arrays(np.array(layer, bool) for layer in layers)


def mask_message(digest, sender, round_, mask, codec=BITPACK, depth=0, held=None):
    header = wire.mask_header(digest, sender, round_, mask.pack(), codec.wire_id, depth, held)
    return header, codec.encode(mask, HISTORY)


HISTORY = History(Forecast([np.zeros(n, np.float32) for n in SIZES], [0, 0, 0]))
MASK = mask_of([[True] * 6 + [False] * 7, [True, False] * 32, [False] * 7])
HELLO = wire.Hello(DIGEST, SIZES, MASK.ones)


def refusal_of(function, *arguments, **options):
    with pytest.raises(Refused) as caught:
        function(*arguments, **options)
    return caught.value.reason


def read(frames, hello=HELLO):
    return wire.read_mask(wire.read_header(frames, wire.max_payload(SIZES)), frames[1], hello, HISTORY)


@given(bits, ids, ids)
def test_mask_messages_come_back_as_they_were(layers, sender, round_):
    mask = mask_of(layers)
    frames = mask_message(DIGEST, sender, round_, mask)
    header = wire.read_header(frames, wire.max_payload(SIZES))
    assert (header.sender, header.round, header.kind) == (sender, round_, Kind.MASK)
    assert header.tag == wire.tag(DIGEST)
    assert wire.read_mask(header, frames[1], wire.Hello(DIGEST, SIZES, mask.ones), HISTORY) == mask


@given(ids, ids)
def test_headers_are_short(sender, round_):
    header, payload = mask_message(DIGEST, sender, round_, MASK, depth=round_, held=max(0, round_ - 1))
    assert len(header) <= 24 < wire.MAX_HEADER
    assert len(payload) == packed_size(SIZES)


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.WELCOME])
def test_hellos_come_back_as_they_were(kind):
    frames = wire.hello(kind, HELLO, 3, 5)
    assert wire.read_header(frames, wire.max_payload(SIZES))[1:6] == (kind, wire.tag(DIGEST), 3, 5, 0)
    assert wire.read_hello(frames[1]) == HELLO


def test_refusals_carry_the_settings():
    frames = wire.refusal(DIGEST, 0, 0, {"experiment.seed": "2"})
    assert wire.read_header(frames, wire.max_payload(SIZES)).kind == Kind.REFUSED
    assert wire.read_refusal(frames[1]) == {"experiment.seed": "2"}


def test_differences_name_the_setting_and_both_values():
    text = wire.differences({"seed": "1", "lr": "1"}, {"seed": "2", "lr": "1"})
    assert text == "seed is 1 here and 2 there"
    assert "2 more" in wire.differences(dict.fromkeys("abcde", "1"), dict.fromkeys("abcde", "2"))
    assert "version" in wire.differences({"seed": "1"}, {"seed": "1"})


def whole(message, sizes=SIZES):
    return wire.read_header(wire.split(message), wire.max_payload(sizes))


@settings(max_examples=500)
@given(st.none() | st.binary(max_size=200))
def test_arbitrary_messages_are_refused_by_name(message):
    assert isinstance(refusal_of(whole, message), Refusal)


@given(st.binary(max_size=400))
def test_a_message_is_split_where_its_header_ends(payload):
    header, content = mask_message(DIGEST, 1, 2, MASK)
    assert wire.split(header + content) == (header, content)
    assert wire.split(header + payload) == (header, payload)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 64,
        b"\xc4\x80" + bytes(128),
    ],
)
def test_a_header_that_does_not_end_is_refused_and_takes_no_memory(message):
    tracemalloc.start()
    try:
        assert refusal_of(wire.split, message) is Refusal.MALFORMED
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=500)
@given(st.recursive(st.integers() | st.binary() | st.text() | st.none() | st.booleans() | st.floats(), st.lists))
def test_arbitrary_msgpack_is_no_hello_and_no_refusal_unless_it_is_one(content):
    try:
        payload = msgpack.packb(content)
    except (OverflowError, UnicodeEncodeError):  # numbers and texts that msgpack cannot write
        return
    for reader in (wire.read_hello, wire.read_refusal):
        with contextlib.suppress(Refused):  # nothing else may leave it
            reader(payload)


@given(st.binary(max_size=300))
def test_arbitrary_payloads_never_raise_anything_else(payload):
    for reader in (wire.read_hello, wire.read_refusal):
        with contextlib.suppress(Refused):
            reader(payload)


@settings(max_examples=300)
@given(st.data())
def test_any_flipped_bit_is_refused(data):
    message = bytearray(b"".join(mask_message(DIGEST, 1, 2, MASK)))
    at = data.draw(st.integers(0, 8 * len(message) - 1))
    message[at // 8] ^= 1 << at % 8
    assert refusal_of(lambda damaged: read(wire.split(damaged)), bytes(message)) in Refusal


@given(st.data())
def test_truncated_messages_are_refused(data):
    message = b"".join(mask_message(DIGEST, 1, 2, MASK))
    shorter = message[: data.draw(st.integers(0, len(message) - 1))]
    assert refusal_of(lambda damaged: read(wire.split(damaged)), shorter) in Refusal


def header(**changes):
    fields = wire.read_header(mask_message(DIGEST, 1, 2, MASK), wire.max_payload(SIZES))._replace(**changes)
    return msgpack.packb(list(fields))


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"", b""], Refusal.MALFORMED),
        ([bytes(65), b""], Refusal.OVERSIZED),
        ([header(), bytes(wire.MAX_CONTROL + 1)], Refusal.OVERSIZED),
        ([msgpack.packb([1, 2, 3]), b""], Refusal.MALFORMED),
        ([header(kind=9), b""], Refusal.MALFORMED),
        ([header(sender=-1), b""], Refusal.MALFORMED),
        ([header(sender=True), b""], Refusal.MALFORMED),
        ([header(sender=1.0), b""], Refusal.MALFORMED),
        ([header(version=1), b""], Refusal.WRONG_VERSION),
        ([header(kind=Kind.BYE), b""], Refusal.CORRUPT),
    ],
)
def test_each_bad_header_has_its_reason(frames, reason):
    assert refusal_of(wire.read_header, frames, wire.max_payload(SIZES)) is reason


def test_each_bad_mask_has_its_reason():
    frames = mask_message(DIGEST, 1, 2, MASK)
    good = wire.read_header(frames, wire.max_payload(SIZES))
    padded = bytearray(frames[1])
    padded[1] |= 1
    assert refusal_of(wire.read_mask, good, bytes(padded), HELLO, HISTORY) is Refusal.CORRUPT
    assert refusal_of(wire.read_mask, good, frames[1] + b"x", HELLO, HISTORY) is Refusal.CORRUPT
    assert refusal_of(wire.read_mask, good._replace(codec=255), frames[1], HELLO, HISTORY) is Refusal.UNKNOWN_CODEC
    assert refusal_of(wire.read_mask, good._replace(round=3), frames[1], HELLO, HISTORY) is Refusal.CORRUPT
    sparser = wire.Hello(DIGEST, SIZES, (5, 32, 0))
    assert refusal_of(wire.read_mask, good, frames[1], sparser, HISTORY) is Refusal.WRONG_DENSITY
    assert refusal_of(wire.read_mask, good, frames[1], sparser, HISTORY, fewer=True) is Refusal.WRONG_DENSITY
    denser = wire.Hello(DIGEST, SIZES, (9, 32, 1))
    assert wire.read_mask(good, frames[1], denser, HISTORY, fewer=True) == MASK


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, Refusal.MALFORMED),
        ([DIGEST, list(SIZES)], Refusal.MALFORMED),
        ([DIGEST[:15], list(SIZES), list(SIZES), ""], Refusal.MALFORMED),
        ([DIGEST, [1, 2], [1], ""], Refusal.MALFORMED),
        ([DIGEST, [1, -2], [1, 0], ""], Refusal.MALFORMED),
        ([DIGEST, [1, 2], [1, 3], ""], Refusal.WRONG_DENSITY),
        ([DIGEST, [1, 2], [1, 2], 7], Refusal.MALFORMED),
        ([DIGEST, [1, 2], [1, 2], "a" * 256], Refusal.MALFORMED),
        ({"a": 1}, Refusal.MALFORMED),
    ],
)
def test_each_bad_hello_has_its_reason(content, reason):
    assert refusal_of(wire.read_hello, msgpack.packb(content)) is reason


@given(ids, st.integers(0, 2**16), st.integers(0, 2**16))
def test_what_is_held_comes_back_as_a_round(sender, round_, behind):
    held = round_ - behind if behind <= round_ else None
    frames = mask_message(DIGEST, sender, round_, MASK, held=held)
    assert wire.read_header(frames, wire.max_payload(SIZES)).acknowledged == held


@given(st.integers(0, 10**6))
def test_depths_are_one_byte_that_tells_neighbouring_ones_and_key_frames_apart(depth):
    short = wire.short_depth(depth)
    assert 0 <= short < 128
    assert (short == 0) == (depth == 0)
    assert short != wire.short_depth(depth + 1)
