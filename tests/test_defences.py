"""Settings of the neighbours' mean against neighbours that lie, and randomised response, in whole runs."""

from functools import partial
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dslth import algorithm, config, topology
from dslth.engines.launcher import run_local, run_one
from dslth.learner import Learner
from dslth.masks import BitMask
from dslth.run.folder import RunFolder

LIARS = {0, 4, 6}


class Liar(Learner):
    """Sends the mask that does the most harm: it keeps what its own mask drops, as many weights as it must."""

    def local_update(self, round_):
        mask, loss = super().local_update(round_)
        lies = []
        for bits, ones in zip(mask.arrays(), self.ones, strict=True):
            order = np.argsort(bits, kind="stable")
            lie = np.zeros(len(bits), bool)
            lie[order[:ones]] = True
            lies.append(lie)
        return BitMask.from_arrays(lies), loss


def lying(peer, *rest, liars, **place):
    return run_one(peer, *rest, make_learner=Liar if peer in liars else Learner, **place)


def honest_accuracy(folder, liars=LIARS, **algorithm):
    """The mean personal accuracy of the honest peers of a full graph of eight."""
    settings = {
        "graph": {"kind": "full", "peers": 8},
        "experiment": {"rounds": 8, "seed": 3, "algorithm": algorithm, "evaluate_every": 8},
    }
    run = config.load("ring", settings)
    graph = topology.build(run.graph, run.experiment.seed)
    outcome = run_local(run, graph, RunFolder(folder), transport="memory", be=partial(lying, liars=liars))
    return fmean(p.accuracy_personal for p in outcome.summary.peers if p.id not in liars)


def test_liars_do_less_harm_where_neighbours_are_weighed_by_how_alike_they_are(tmp_path):
    plain, similar = honest_accuracy(tmp_path / "plain"), honest_accuracy(tmp_path / "similar", mean="similar")
    assert similar > plain + 0.01
    assert honest_accuracy(tmp_path / "clean", mean="similar", liars=()) > 0.95  # and it costs nothing without liars


def test_randomised_response_still_learns(tmp_path):
    assert honest_accuracy(tmp_path / "noisy", liars=(), epsilon=4) > 0.85
    assert honest_accuracy(tmp_path / "more", liars=(), epsilon=1) > 0.65


bits = st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=3, max_size=9)


def tensors(rows):
    return [[torch.tensor(row).float()] for row in rows]


def own():
    return [torch.zeros(12)]


@given(bits, st.lists(st.booleans(), min_size=12, max_size=12))
def test_one_liar_moves_the_plain_mean_by_one_over_d_and_the_others_less_where_the_rest_agree(rows, lie):
    honest, lied = tensors(rows), tensors([*rows[:-1], lie])
    agree = torch.stack([row[0] for row in honest]).sum(0) % len(rows) == 0
    shift = {
        rule: (algorithm.combine(honest, own(), rule)[0] - algorithm.combine(lied, own(), rule)[0]).abs()
        for rule in ("plain", "trimmed", "median")
    }
    assert shift["plain"].max() <= 1 / len(rows) + 1e-6
    assert (shift["trimmed"][agree] == 0).all()
    assert (shift["median"][agree] == 0).all()


@given(bits)
def test_each_rule_gives_shares_and_the_plain_one_is_the_papers(rows):
    for rule in ("plain", "trimmed", "median", "similar"):
        (a,) = algorithm.combine(tensors(rows), [torch.tensor(rows[0]).float()], rule)
        assert ((a >= 0) & (a <= 1 + 1e-6)).all()
    assert torch.allclose(
        algorithm.combine(tensors(rows), own(), "plain")[0], torch.tensor(rows).float().mean(0), atol=1e-6
    )


@pytest.mark.parametrize("rule", ["plain", "trimmed", "median", "similar"])
def test_nobody_there_lifts_nothing(rule):
    assert algorithm.combine([], own(), rule)[0].sum() == 0


def test_a_similar_neighbour_counts_and_a_random_or_opposite_one_does_not():
    rng = np.random.default_rng(0)
    mine = torch.from_numpy(rng.random(10_000) < 0.5).float()
    stranger = torch.from_numpy(rng.random(10_000) < 0.5).float()
    (a,) = algorithm.combine([[mine], [stranger], [1 - mine]], [mine], "similar")
    assert (a - mine).abs().max() < 0.05


def test_randomised_response_is_unbiased_and_each_bit_is_flipped_as_often_as_epsilon_says():
    run = config.load("ring", {"experiment": {"algorithm": {"epsilon": 1.5}, "model": {"name": "mlp"}}})
    learner = Learner(0, 10, run.experiment, run.device(0))
    mask = learner.mask()
    sent = [learner._response(mask) for _ in range(60)]
    n, flip = sum(mask.sizes), 1 / (1 + np.exp(1.5))
    shares = [sum((mask ^ noisy).ones) / n for noisy in sent]
    assert fmean(shares) == pytest.approx(flip, abs=5 * np.sqrt(flip * (1 - flip) / n / len(sent)))
    assert len({noisy.digest for noisy in sent}) == len(sent)
    freed = learner._mean(sent)
    truth = [torch.from_numpy(layer).float() for layer in mask.arrays()]
    for layer, true in zip(freed, truth, strict=True):
        assert float((layer.reshape(-1) - true).mean()) == pytest.approx(0, abs=0.02)
