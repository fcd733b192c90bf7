import numpy as np
import pytest
from bitarray.util import sc_encode
from hypothesis import given, settings
from hypothesis import strategies as st

from dslth import codecs
from dslth.codecs import BY_ID, BY_NAME, Decoder, Encoder, History, encode
from dslth.masks import BitMask, packed_size

SIZES = (13, 640, 7, 1)


def drawn(seed, density, sizes=SIZES):
    rng = np.random.default_rng(seed)
    return BitMask.from_arrays(rng.random(n) < density for n in sizes)


def flipped(mask, seed, share):
    rng = np.random.default_rng(seed)
    return BitMask.from_arrays(layer.astype(bool) ^ (rng.random(len(layer)) < share) for layer in mask.arrays())


def walk(seed, steps, share=0.02, sizes=SIZES, density=0.5):
    masks = [drawn(seed, density, sizes)]
    for step in range(steps):
        masks.append(flipped(masks[-1], (seed, step), share))
    return masks


def history_of(masks):
    history = History(masks[0], 0)
    for round_, mask in enumerate(masks[1:], 1):
        history = history.advanced(mask, round_)
    return history


seeds = st.integers(0, 2**32 - 1)
shares = st.sampled_from([0.0, 0.001, 0.02, 0.3, 0.5, 0.99, 1.0])
ALL = pytest.mark.parametrize("codec", BY_NAME.values(), ids=BY_NAME)


def test_every_wire_id_has_its_codec():
    assert set(BY_ID.values()) == set(BY_NAME.values())
    assert all(BY_ID[codec.wire_id] is codec for codec in BY_NAME.values())


@ALL
@given(seeds, shares, shares, st.integers(1, 12))
def test_what_is_decoded_is_what_was_encoded(codec, seed, density, share, steps):
    *past, mask = walk(seed, steps, share, density=density)
    payload = codec.encode(mask, history_of(past))
    assert codec.decode(payload, SIZES, history_of(past)) == mask


@ALL
@given(st.lists(st.integers(0, 70), min_size=1, max_size=4), seeds)
def test_layers_of_any_size(codec, sizes, seed):
    *past, mask = walk(seed, 3, 0.2, sizes)
    payload = codec.encode(mask, history_of(past))
    assert codec.decode(payload, sizes, history_of(past)) == mask


@ALL
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), seeds)
def test_arbitrary_payloads_give_a_mask_or_a_value_error(codec, payload, seed):
    try:
        mask = codec.decode(payload, SIZES, history_of(walk(seed, 4)))
    except ValueError:
        return
    assert mask.sizes == SIZES


@ALL
def test_a_history_of_other_sizes_is_refused(codec):
    mask = drawn(1, 0.5)
    payload = codec.encode(mask, history_of(walk(0, 2)))
    if codec.builds_on:
        for history in (None, history_of(walk(0, 2, sizes=(5, 5)))):
            with pytest.raises(ValueError, match="not there"):
                codec.decode(payload, SIZES, history)
    else:
        assert codec.decode(payload, SIZES, None) == mask


@given(seeds, shares, shares, st.integers(0, 10))
def test_auto_is_the_shortest_and_never_longer_than_bitpack(seed, density, share, steps):
    *past, mask = walk(seed, steps, share, density=density)
    history = history_of(past) if past else None
    codec, payload = encode(mask, history, "auto")
    assert codec.decode(payload, SIZES, history) == mask
    assert len(payload) <= packed_size(SIZES)
    others = [c for c in BY_NAME.values() if not c.builds_on or history]
    if history:
        others.remove(codecs.RANGE)
    assert len(payload) == min(len(c.encode(mask, history)) for c in others)


@pytest.mark.parametrize("name", ["delta", "context"])
def test_without_a_past_a_key_frame_is_sent(name):
    codec, _ = encode(drawn(3, 0.3), None, name)
    assert codec is codecs.RANGE


def entropy(p):
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


@pytest.mark.parametrize("density", [0.01, 0.1, 0.3, 0.5, 0.9])
def test_range_is_within_a_percent_of_the_entropy(density):
    mask = drawn(5, density, (200_000,))
    bound = 200_000 * entropy(mask.density[0]) / 8
    assert bound <= len(codecs.RANGE.encode(mask, None)) + 4
    assert len(codecs.RANGE.encode(mask, None)) < 1.01 * bound + 8


@pytest.mark.parametrize("share", [0.0005, 0.002, 0.01, 0.05])
def test_delta_is_within_three_percent_of_the_entropy_of_flips_and_beats_sparse_codes(share):
    before, after = walk(6, 1, share, (400_000,))
    payload = codecs.DELTA.encode(after, History(before, 0))
    flips = (before ^ after).layers[0]
    assert len(payload) < 1.03 * 400_000 * entropy(flips.count() / 400_000) / 8 + 8
    assert len(payload) < 0.9 * len(sc_encode(flips))


def test_context_foresees_a_mask_that_swings_to_and_fro():
    a, b = walk(7, 1, 0.03, (50_000,))
    masks = [a, b] * 8
    history = history_of(masks)
    assert len(codecs.CONTEXT.encode(a, history)) < len(codecs.DELTA.encode(a, history)) / 20


def test_context_finds_the_weights_that_flip_again_and_again():
    rng = np.random.default_rng(8)
    restless = rng.random(100_000) < 0.01
    masks = [drawn(8, 0.5, (100_000,))]
    for _ in range(30):
        flips = restless & (rng.random(100_000) < 0.3)
        masks.append(BitMask.from_arrays([masks[-1].arrays()[0].astype(bool) ^ flips]))
    *past, mask = masks
    context, delta = (len(c.encode(mask, history_of(past))) for c in (codecs.CONTEXT, codecs.DELTA))
    assert context < 0.6 * delta


@given(seeds, st.integers(1, 5000), st.integers(1, codecs.ONE - 1))
def test_rare_positions_come_back(seed, n, p):
    rng = np.random.default_rng(seed)
    positions = np.flatnonzero(rng.random(n) < p / codecs.ONE)
    coder = Encoder()
    coder.rare(positions, n, p)
    coder.number(seed % 1000, 1000)
    decoder = Decoder(coder.finish())
    assert np.array_equal(decoder.rare(n, p), positions)
    assert decoder.number(1000) == seed % 1000


@given(st.integers(1, 2**40), st.data())
def test_numbers_of_any_range_come_back(size, data):
    value = data.draw(st.integers(0, size - 1))
    coder = Encoder()
    coder.number(value, size)
    payload = coder.finish()
    assert Decoder(payload).number(size) == value
    assert len(payload) <= (size.bit_length() + 7) // 8 + 4


def test_crowded_blocks_come_back():
    positions = np.arange(3000)
    coder = Encoder()
    coder.rare(positions, 5000, codecs.ONE // 10_000)
    assert np.array_equal(Decoder(coder.finish()).rare(5000, codecs.ONE // 10_000), positions)


def test_payloads_do_not_depend_on_anything_but_masks():
    """The bytes of a fixed walk, so that two machines or versions that differ are found out."""
    *past, mask = walk(9, 12, 0.03)
    payload = codecs.CONTEXT.encode(mask, history_of(past))
    assert payload == codecs.CONTEXT.encode(mask, history_of(past))
    assert (len(payload), payload[:8].hex()) == (15, "ada3ead7b2f0d32d")
