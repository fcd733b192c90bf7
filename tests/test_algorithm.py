"""The algorithm's variants; its steps are compared with the authors' own code in ``conformance``."""

import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch

from dslth import algorithm
from dslth.algorithm import Setting
from dslth.config import Schedule
from dslth.errors import ConfigError

PAPER = Setting(densities=(0.5,), lr=10.0, weight_decay=5e-4, fine_tune_lr=10.0)


def votes(count, n=50, share=0.5):
    rng = np.random.default_rng(1)
    return [[torch.from_numpy(rng.random(n) < share).float()] for _ in range(count)]


def test_a_mean_that_there_is_not_is_refused_by_name():
    with pytest.raises(ConfigError, match="no mean 'trimed' here"):
        algorithm.combine(votes(3), votes(1)[0], replace(PAPER, mean="trimed"))


def test_inertia_adds_the_own_last_mask_to_the_neighbours_mean():
    (a,), (own,) = votes(2)
    assert torch.equal(algorithm.lifts([a], [own], PAPER)[0], a)
    assert torch.equal(algorithm.lifts([a], [own], replace(PAPER, inertia=0.5))[0], a + 0.5 * own)


def test_neighbours_lift_scores_as_much_as_they_are_told():
    (a,), (own,) = votes(2)
    assert torch.equal(algorithm.lifts([a], [own], replace(PAPER, lift=4.0))[0], 4 * a)
    both = replace(PAPER, lift=2.0, inertia=0.5)
    assert torch.equal(algorithm.lifts([a], [own], both)[0], 2 * a + 0.5 * own)


def test_a_relative_step_is_as_large_as_the_scores_say():
    s, g, a = torch.tensor([1.0, -3.0]), torch.tensor([3e-6, 1e-6]), torch.tensor([1.0, 0.0])
    setting = replace(PAPER, lr=0.1, weight_decay=0.0, fine_tune_lr=0.5, relative=True)
    (stepped,) = algorithm.local_step([s], [g], setting)
    assert torch.allclose(stepped - s, torch.tensor([-0.3, -0.1]))  # .2 on average: a tenth of 2
    (tuned,) = algorithm.fine_tune([s], [g], [a], setting)
    assert torch.allclose(tuned - s, torch.tensor([-1.5, 0.0]))
    assert torch.equal(algorithm.local_step([s], [0 * g], setting)[0], s)
    assert torch.equal(g, torch.tensor([3e-6, 1e-6]))  # it is used again


@pytest.mark.parametrize(("schedule", "half"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_rates_fall_as_the_schedule_says(schedule, half):
    shares = [algorithm.scheduled(PAPER, Schedule(schedule), done) for done in (0.0, 0.25, 0.5, 1.0)]
    assert shares[0] == PAPER
    assert shares[2].lr == pytest.approx(half * PAPER.lr)
    assert shares[2].fine_tune_lr == pytest.approx(half * PAPER.fine_tune_lr)
    assert (shares[3].lr == 0) == (schedule != "constant")
    assert shares[1].lr == pytest.approx({"linear": 0.75, "cosine": 0.8535534}.get(schedule, 1.0) * PAPER.lr)


def test_momentum_keeps_a_share_of_the_mean_before():
    (before,), (now,) = votes(2)
    assert torch.equal(algorithm.smoothed([before], [now], PAPER)[0], now)
    (a,) = algorithm.smoothed([before], [now], replace(PAPER, momentum=0.25))
    assert torch.allclose(a, 0.25 * before + 0.75 * now)


def test_a_heavy_ball_keeps_a_share_of_the_direction_before():
    before, g = torch.tensor([2.0, -4.0]), torch.tensor([6.0, 0.0])
    assert torch.equal(algorithm.directions([], [g], PAPER)[0], g)
    (d,) = algorithm.directions([before], [g], replace(PAPER, heavy_ball=0.75))
    assert torch.equal(d, torch.tensor([3.0, -3.0]))
    assert torch.equal(before, torch.tensor([2.0, -4.0]))  # it may be in a state to restore


def test_randomised_response_flips_as_many_bits_as_it_says_and_the_mean_is_freed_of_them():
    noise = np.random.default_rng(2)
    mask = torch.from_numpy(noise.random((100, 50)) < 0.4)
    assert torch.equal(algorithm.respond([mask], PAPER, noise)[0], mask)
    setting = replace(PAPER, flip=1 / (1 + math.exp(1.5)))
    sent = [algorithm.respond([mask], setting, noise) for _ in range(60)]
    spread = 5 * math.sqrt(setting.flip * (1 - setting.flip) / mask.numel() / len(sent))
    assert fmean(float((noisy ^ mask).float().mean()) for (noisy,) in sent) == pytest.approx(setting.flip, abs=spread)
    assert len({noisy.numpy().tobytes() for (noisy,) in sent}) == len(sent)
    (a,) = algorithm.combine([[noisy.float()] for (noisy,) in sent], [mask.float()], setting)
    assert float(a[mask].mean()) == pytest.approx(1, abs=0.02)
    assert float(a[~mask].mean()) == pytest.approx(0, abs=0.02)
    assert algorithm.combine([], [mask.float()], setting)[0].count_nonzero() == 0
