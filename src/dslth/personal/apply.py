"""Teach a ticket more, on data at hand and alone: MCE-PL's local steps, from scores that give the ticket's mask."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dslth import algorithm
from dslth.config import ExperimentConfig, Scores
from dslth.errors import DataError
from dslth.learner import normalised, threads
from dslth.learning import supermask
from dslth.learning.dataset import Labels, Values
from dslth.masks import BitMask
from dslth.personal import nets
from dslth.runs.tickets import Ticket
from dslth.seeds import Stream

__all__ = ["fine_tuned", "scores_of"]


def fine_tuned(ticket: Ticket, images: Values, labels: Labels, rounds: int, lr: float | None = None) -> Ticket:
    """Return a ticket that has learned ``rounds`` times the run's local steps on images (n, c, h, w), labels (n,).

    Density, minibatch and weight decay are the run's, as is ``lr`` unless given. Raises DataError without images.
    """
    if not len(labels):
        raise DataError("there is no image to learn from; name other classes, or other data")
    net, experiment = nets.net_of(ticket), ticket.experiment
    setting = _setting(experiment, ticket.mask, experiment.algorithm.lr if lr is None else lr)
    alone = [torch.zeros_like(w) for w in net.weights]
    shown, right = torch.tensor(images), torch.tensor(labels)
    with threads(1):
        scores = scores_of(ticket)
        masks = algorithm.extract_masks(scores, alone, setting)
        for step in range(rounds * experiment.algorithm.local_steps):
            stream = Stream(experiment.seed, "apply", ticket.peer, step)
            some = torch.from_numpy(stream.choice(len(labels), min(len(labels), experiment.algorithm.batch)))
            gradient = algorithm.gradient(net, masks, scores, alone, normalised(shown[some]), right[some], setting)
            scores = algorithm.local_step(scores, gradient.g, setting)
            masks = algorithm.extract_masks(scores, alone, setting)
    learned = BitMask.from_arrays(mask.numpy() for mask in masks)
    return replace(ticket, mask=learned)


def scores_of(ticket: Ticket) -> list[Tensor]:
    """Make scores whose largest magnitudes are those of the weights that the ticket keeps; float32, one per layer.

    They are the peer's first scores with magnitudes exchanged: each keeps its sign, and its order among the kept or
    among the dropped. A ticket does not hold the scores that the peer ended with.
    """
    net, experiment = nets.net_of(ticket), ticket.experiment
    own = experiment.algorithm.scores == Scores.OWN
    first = supermask.initial_scores(net, experiment.seed, ticket.peer if own else "common")
    return [_rearranged(s, mask) for s, mask in zip(first, ticket.mask.arrays(), strict=True)]


def _rearranged(scores: Tensor, mask: NDArray[np.uint8]) -> Tensor:
    flat = scores.numpy().ravel()
    magnitudes = np.abs(flat)
    order = np.lexsort((magnitudes, mask))  # the dropped, then the kept, each by magnitude
    arranged = np.empty_like(magnitudes)
    arranged[order] = np.sort(magnitudes)
    return torch.from_numpy(np.copysign(arranged, flat)).reshape(scores.shape)


def _setting(experiment: ExperimentConfig, mask: BitMask, lr: float) -> algorithm.Setting:
    settings = experiment.algorithm
    return algorithm.Setting(
        densities=_densities(mask),
        lr=lr,
        weight_decay=settings.weight_decay,
        fine_tune_lr=0.0,
        lasso=settings.lasso,
        min_filter_weights=settings.min_filter_weights,
        relative=settings.relative,
    )


def _densities(mask: BitMask) -> Sequence[float]:
    """Return densities of which each layer's top-k keeps exactly as many weights as the mask."""
    return [max(0.0, (k - 0.5) / n) for k, n in zip(mask.ones, mask.sizes, strict=True)]
