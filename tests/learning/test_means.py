"""Every mean of neighbours' masks, and what a neighbour that lies can do to it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dslth.learning.means import MEANS

votes = st.lists(st.booleans(), min_size=12, max_size=12)
bits = st.lists(votes, min_size=3, max_size=9)
OWN = [torch.zeros(12)]


def tensors(rows):
    return [[torch.tensor(row).float()] for row in rows]


@given(bits, votes)
def test_one_liar_moves_the_plain_mean_by_one_over_d_and_the_others_less_where_the_rest_agree(rows, lie):
    honest, lied = tensors(rows), tensors([*rows[:-1], lie])
    agree = torch.stack([row[0] for row in honest]).sum(0) % len(rows) == 0
    shift = {
        name: (MEANS[name](honest, OWN)[0] - MEANS[name](lied, OWN)[0]).abs() for name in ("plain", "trimmed", "median")
    }
    assert shift["plain"].max() <= 1 / len(rows) + 1e-6
    assert (shift["trimmed"][agree] == 0).all()
    assert (shift["median"][agree] == 0).all()


@given(bits)
def test_every_mean_gives_shares_and_the_plain_one_is_the_papers(rows):
    for mean in MEANS.values():
        (a,) = mean(tensors(rows), [torch.tensor(rows[0]).float()])
        assert ((a >= 0) & (a <= 1 + 1e-6)).all()
    assert torch.allclose(MEANS["plain"](tensors(rows), OWN)[0], torch.tensor(rows).float().mean(0), atol=1e-6)


@pytest.mark.parametrize("mean", MEANS)
def test_nobody_there_lifts_nothing(mean):
    assert MEANS[mean]([], OWN)[0].sum() == 0


def test_a_similar_neighbour_counts_and_a_random_or_opposite_one_does_not():
    rng = np.random.default_rng(0)
    mine = torch.from_numpy(rng.random(10_000) < 0.5).float()
    stranger = torch.from_numpy(rng.random(10_000) < 0.5).float()
    (a,) = MEANS["similar"]([[mine], [stranger], [1 - mine]], [mine])
    assert (a - mine).abs().max() < 0.05
