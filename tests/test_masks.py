"""BitMask: packing, comparing and naming masks, against numpy."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dslth.masks import BitMask, largest, packed_size

Layers = list[NDArray[np.bool_]]

PROPERTY = settings(max_examples=50, deadline=None, database=None)

sizes = st.lists(st.integers(0, 100) | st.sampled_from([0, 1, 7, 8, 9, 16, 64, 96]), min_size=0, max_size=5)


def draw_layers(sizes: list[int], seed: int, share: float = 0.5) -> Layers:
    rng = np.random.default_rng(seed)
    return [rng.random(n) < share for n in sizes]


layers = st.builds(draw_layers, sizes, st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.5, 1.0]))


@PROPERTY
@given(layers)
def test_unpack_gives_back_what_pack_wrote(layers: Layers) -> None:
    mask = BitMask.from_arrays(layers)
    again = BitMask.unpack(mask.pack(), [layer.size for layer in layers])
    assert again == mask
    assert again.sizes == tuple(layer.size for layer in layers)
    for array, layer in zip(again.arrays(), layers, strict=True):
        np.testing.assert_array_equal(array.astype(bool), layer)


@PROPERTY
@given(layers)
def test_packed_form_is_numpys_packbits_layer_by_layer(layers: Layers) -> None:
    mask = BitMask.from_arrays(layers)
    expected = b"".join(np.packbits(layer).tobytes() for layer in layers)
    assert mask.pack() == expected
    assert packed_size(mask.sizes) == len(expected)
    assert mask.digest == hashlib.sha256(expected).hexdigest()


def test_arrays_of_any_shape_are_flattened_in_c_order() -> None:
    array = np.arange(24).reshape(2, 3, 4) % 5 == 0
    assert BitMask.from_arrays([array]) == BitMask.from_arrays([array.ravel()])
    fortran = np.asfortranarray(array)
    assert BitMask.from_arrays([fortran]) == BitMask.from_arrays([array.ravel()])


@PROPERTY
@given(sizes, st.integers(0, 2**32), st.integers(0, 2**32))
def test_xor_and_flips_agree_with_numpy(sizes: list[int], one: int, other: int) -> None:
    a, b = draw_layers(sizes, one), draw_layers(sizes, other, 0.3)
    mask_a, mask_b = BitMask.from_arrays(a), BitMask.from_arrays(b)
    differ = [x ^ y for x, y in zip(a, b, strict=True)]
    assert mask_a ^ mask_b == BitMask.from_arrays(differ)
    assert mask_a.flips(mask_b) == tuple(int(x.sum()) / max(1, x.size) for x in differ)
    assert (mask_a ^ mask_b) ^ mask_b == mask_a


@PROPERTY
@given(layers)
def test_ones_and_density_agree_with_numpy(layers: Layers) -> None:
    layers = [layer for layer in layers if layer.size]
    mask = BitMask.from_arrays(layers)
    assert mask.ones == tuple(int(layer.sum()) for layer in layers)
    assert mask.density == pytest.approx([layer.mean() for layer in layers])


@PROPERTY
@given(layers, st.integers(0, 4), st.integers(0, 99))
def test_one_flipped_bit_changes_the_digest(layers: Layers, layer: int, bit: int) -> None:
    layers.append(np.zeros(100, bool))
    flipped = [array.copy() for array in layers]
    target = flipped[layer % len(flipped)] if flipped[layer % len(flipped)].size else flipped[-1]
    target[bit % target.size] ^= True
    mask, other = BitMask.from_arrays(layers), BitMask.from_arrays(flipped)
    assert mask != other
    assert mask.digest != other.digest
    assert sum((mask ^ other).ones) == 1


@PROPERTY
@given(layers, st.integers(-60, 60).filter(bool))
def test_unpack_refuses_any_other_length(layers: Layers, change: int) -> None:
    mask = BitMask.from_arrays(layers)
    packed = mask.pack()
    other = packed + b"\0" * change if change > 0 else packed[:change]
    if len(other) == len(packed):  # nothing to cut off
        other = packed + b"\0"
    with pytest.raises(ValueError, match=f"{len(other)} bytes for a mask of {len(packed)}"):
        BitMask.unpack(other, mask.sizes)


@pytest.mark.parametrize("n", [1, 3, 7, 9, 15, 41])
def test_unpack_refuses_every_set_padding_bit(n: int) -> None:
    packed = BitMask.from_arrays([np.ones(8, bool), np.ones(n, bool), np.zeros(8, bool)]).pack()
    last = 1 + n // 8
    for bit in range(8 - n % 8):
        damaged = bytearray(packed)
        damaged[last] |= 1 << bit
        with pytest.raises(ValueError, match="padding"):
            BitMask.unpack(bytes(damaged), [8, n, 8])


def test_masks_of_other_layers_cannot_be_compared() -> None:
    mask = BitMask.from_arrays([np.ones(8, bool), np.ones(9, bool)])
    for other in ([np.ones(8, bool)], [np.ones(8, bool), np.ones(10, bool)]):
        with pytest.raises(ValueError, match=r"argument|length|size"):
            mask ^ BitMask.from_arrays(other)
        with pytest.raises(ValueError, match=r"argument|length|size"):
            mask.flips(BitMask.from_arrays(other))


@PROPERTY
@given(st.lists(st.integers(0, 9), max_size=40), st.data())
def test_the_largest_are_the_end_of_a_stable_sort(values: list[int], data: st.DataObject) -> None:
    magnitudes = np.array(values, np.float32)
    count = data.draw(st.integers(0, len(values)))
    kept, threshold = largest(magnitudes, count)
    assert set(np.flatnonzero(kept)) == set(np.argsort(magnitudes, kind="stable")[len(values) - count :])
    assert threshold == magnitudes[kept].min(initial=magnitudes.max(initial=0))
