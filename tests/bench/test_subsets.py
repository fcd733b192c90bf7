"""Sums of subsets: the best mask is the best of all, many agents share their candidates, the error falls as counted."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dslth.bench.experiments import subsets
from dslth.bench.experiments.subsets import MASKS, SubsetSums, approximate, best_masks, bits_per_candidate, counting

BOUNDED = st.floats(-2, 2, allow_nan=False)


@given(
    candidates=st.lists(BOUNDED, min_size=1, max_size=7),
    targets=st.lists(BOUNDED, min_size=1, max_size=4),
    values=st.sampled_from(list(MASKS.values())),
)
def test_no_other_mask_comes_nearer(candidates, targets, values):
    found = best_masks(np.array(candidates), np.array(targets), values)
    assert found.shape == (len(targets), len(candidates))
    assert set(found.ravel()) <= set(values)
    sums = [float(np.dot(mask, candidates)) for mask in product(values, repeat=len(candidates))]
    for mask, target in zip(found, targets, strict=True):
        least = min(abs(each - target) for each in sums)
        assert abs(float(np.dot(mask, candidates)) - target) == pytest.approx(least, abs=1e-12)


def test_a_sum_of_some_candidates_is_found_again():
    candidates = np.random.default_rng(1).uniform(-1, 1, 21)
    mask = np.random.default_rng(2).integers(0, 2, 21)
    (found,) = best_masks(candidates, np.array([mask @ candidates]), MASKS["{0,1}"])
    assert (found == mask).all()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("drawn", ["uniform", "product"])
def test_the_error_falls_with_the_slope_of_theory_for_each_agent(drawn, mask):
    numbers = (4, 7, 10, 13)
    settings = SubsetSums(agents=3, weights=60, candidates={mask: numbers})
    errors = [approximate(settings, drawn, mask, n, seed=1) for n in numbers]
    theory = bits_per_candidate(numbers, [counting(drawn, mask, n) for n in numbers])
    for agent in range(settings.agents):
        medians = [float(np.median(each[agent])) for each in errors]
        assert bits_per_candidate(numbers, medians) == pytest.approx(theory, abs=0.25)
        assert medians[-1] == pytest.approx(counting(drawn, mask, 13), rel=1)


def test_signed_constants_win_little_because_most_of_their_sums_are_equal():
    numbers = (4, 8, 12, 16)
    errors = [
        np.median(
            approximate(SubsetSums(agents=2, weights=20, candidates={"{0,1}": numbers}), "constant", "{0,1}", n, 1)
        )
        for n in numbers
    ]
    assert bits_per_candidate(numbers, errors) < 0.3


def test_agents_have_other_targets_and_the_same_candidates_whatever_their_number(monkeypatch):
    asked = []
    monkeypatch.setattr(
        subsets, "best_masks", lambda candidates, targets, values: asked.append((candidates, targets)) or
        best_masks(candidates, targets, values)
    )  # fmt: skip
    few, many = (SubsetSums(agents=agents, weights=1, candidates={"{0,1}": (2, 6)}) for agents in (2, 3))
    for settings, n in ((few, 6), (many, 6), (many, 2)):
        assert approximate(settings, "product", "{0,1}", n, 1).shape == (settings.agents, 1)
    (first, two), (same, three), (fewer, _) = asked
    assert (first == same).all()
    assert (first[:2] == fewer).all()
    assert (two == three[:2]).all()
    assert len(set(three)) == 3


@pytest.mark.parametrize("wrong", [{"{0,1}": (2, 60)}, {"{-1,0,1}": (2, 26)}, {"{0,1}": (2,)}, {"{0,2}": (2, 4)}])
def test_what_takes_too_much_memory_or_says_nothing_is_refused(wrong):
    with pytest.raises(ValidationError, match="candidates"):
        SubsetSums(candidates=wrong)
