"""Entropies of masks, by counting."""

from collections import Counter
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dslth.bench.entropy import conditional_bits, mask_bits

PROPERTY = settings(max_examples=50, deadline=None, database=None)


@PROPERTY
@given(st.integers(0, 3), st.lists(st.integers(0, 15), max_size=60))
def test_entropy_is_that_of_counting_by_hand(order, words):
    columns = [[word >> bit & 1 for word in words] for bit in range(order + 1)]
    bits, *past = (np.array(column, np.uint8) for column in columns)
    together = Counter(zip(*columns, strict=True))
    contexts = Counter(zip(*columns[1:], strict=True)) if order else Counter({(): len(words)})
    expected = sum(-n * log2(n / contexts[key[1:]]) for key, n in together.items())
    assert conditional_bits(bits, past) == pytest.approx(expected, abs=1e-9)


def test_entropy_of_known_cases():
    rng = np.random.default_rng(1)
    fair, other = (np.tile(np.array(pattern, np.uint8), 500) for pattern in ([0, 1, 1, 0], [0, 0, 1, 1]))
    assert conditional_bits(fair, []) == 2000
    assert conditional_bits(fair, [other]) == 2000  # independent
    assert conditional_bits(fair, [1 - fair]) == 0
    assert conditional_bits(np.zeros(9, np.uint8), []) == 0
    rare = (rng.permutation(1000) < 250).astype(np.uint8)
    assert conditional_bits(rare, []) == pytest.approx(1000 * (0.25 * 2 + 0.75 * log2(4 / 3)))


def test_masks_that_swing_are_known_from_the_last_two():
    rng = np.random.default_rng(2)
    even, odd = ([rng.integers(0, 2, n).astype(np.uint8) for n in (400, 100)] for _ in range(2))
    by_round = mask_bits([even, odd, even, odd])
    assert by_round[0][0] == by_round[0][1] == pytest.approx(500, rel=0.02)  # nothing is given
    assert by_round[1][0] == by_round[1][1]
    for given_last, given_two in by_round[2:]:
        assert given_last == pytest.approx(500, rel=0.02)
        assert given_two == 0
