"""MCE-PL as pure functions: mask-exchange personalised learning, after arXiv 2504.17520.

Notation, per layer: weights ``w`` are frozen; scores ``s`` are what a peer learns; ``a`` is the mean of its
neighbours' masks (the peer itself not included); ``e`` the effective scores, the paper's intermediate aggregation
tensor; ``m`` the mask. All are float32 tensors of the layer's shape, ``m`` is boolean. Lists run over layers.

The paper's steps come first: a round is ``extract_masks``, ``gradient``, ``local_step``, ``extract_masks`` again, the
exchange, ``combine``, ``fine_tune``. The variants, which are off unless a setting asks for them, come after.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import cos, pi

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dslth.config import Schedule
from dslth.learning.means import mean_of
from dslth.learning.supermask import FrozenNet, kept, structured, top_k

__all__ = [
    "Gradient",
    "Setting",
    "combine",
    "directions",
    "effective_scores",
    "extract_mask",
    "extract_masks",
    "fine_tune",
    "gradient",
    "group_lasso",
    "lifts",
    "local_step",
    "masked_weights",
    "respond",
    "scaled",
    "scheduled",
    "smoothed",
    "straight_through",
    "unbiased",
]


@dataclass(frozen=True)
class Setting:
    """The constants of one peer: density of each layer, steps, weight decay; the variants are off by default.

    ``mean`` is the name of one of ``MEANS`` or of a plugin, ``inertia`` the weight of the own last mask, ``momentum``
    the share of the last ``a`` that stays, ``heavy_ball`` the share of the last step's direction that stays, ``lift``
    the factor by which ``a`` lifts scores, ``flip`` the probability that randomised response flips a sent bit (below
    1/2). ``relative``: rates are relative to the scores' magnitudes.
    """

    densities: Sequence[float]
    lr: float
    weight_decay: float
    fine_tune_lr: float
    lasso: float = 0.0
    min_filter_weights: int = 0
    mean: str = "plain"
    inertia: float = 0.0
    momentum: float = 0.0
    heavy_ball: float = 0.0
    relative: bool = False
    lift: float = 1.0
    flip: float = 0.0


@dataclass(frozen=True)
class Gradient:
    """``loss`` (mean cross entropy plus group lasso) and its straight-through gradient ``g`` per layer."""

    loss: float
    g: list[Tensor]


def effective_scores(s: Tensor, a: Tensor) -> Tensor:
    """Lift the scores where neighbours keep the weight: ``e = s + mean|s| * sign(s) * a`` (step 1)."""
    return torch.addcmul(s, a, s.sign(), value=s.abs().mean().item())


def extract_mask(s: Tensor, a: Tensor, density: float, min_filter_weights: int = 0) -> Tensor:
    """Return the mask of one layer, the top ``density`` share of ``|e|`` (step 2), then structured removal."""
    return structured(top_k(effective_scores(s, a), density), min_filter_weights)


def extract_masks(scores: Sequence[Tensor], means: Sequence[Tensor], setting: Setting) -> list[Tensor]:
    """Return the masks of all layers."""
    layers = zip(scores, means, setting.densities, strict=True)
    return [extract_mask(s, a, k, setting.min_filter_weights) for s, a, k in layers]


def masked_weights(net: FrozenNet, masks: Sequence[Tensor]) -> list[Tensor]:
    """Return ``w * m`` per layer."""
    return [kept(w, m) for w, m in zip(net.weights, masks, strict=True)]


def group_lasso(effective: Sequence[Tensor]) -> Tensor:
    """Sum ``||e[f]||_2`` over layers and filters (convolution output channels, linear rows); a scalar (step 3)."""
    return torch.stack([e.flatten(1).norm(dim=1).sum() for e in effective]).sum()


def straight_through(grad: Tensor, w: Tensor, s: Tensor) -> Tensor:
    """Turn ``dL/d(w*m)`` into the gradient of the scores, kept or not: ``dL/d(w*m) * w * sign(s)`` (step 4)."""
    return (grad * w).mul_(s.sign())


def gradient(
    net: FrozenNet,
    masks: Sequence[Tensor],
    scores: Sequence[Tensor],
    means: Sequence[Tensor],
    images: Tensor,
    labels: Tensor,
    setting: Setting,
) -> Gradient:
    """Run one minibatch, images (n, c, h, w) and labels (n,), forward and back through the masks (steps 3 and 4)."""
    masked = masked_weights(net, masks)
    for weight in masked:
        weight.requires_grad_()
    loss = F.cross_entropy(net(masked, images), labels)
    grads = torch.autograd.grad(loss, masked)
    g = [straight_through(d, w, s) for d, w, s in zip(grads, net.weights, scores, strict=True)]
    if not setting.lasso:
        return Gradient(loss.item(), g)
    effective = [effective_scores(s, a).requires_grad_() for s, a in zip(scores, means, strict=True)]
    penalty = setting.lasso * group_lasso(effective)
    # mean|s| and sign(s) count as constants, so the gradient by e is the gradient by s
    pull = torch.autograd.grad(penalty, effective)
    return Gradient(loss.item() + penalty.item(), [d + p for d, p in zip(g, pull, strict=True)])


def local_step(scores: Sequence[Tensor], g: Sequence[Tensor], setting: Setting) -> list[Tensor]:
    """Step down the gradient: ``s <- s - lr * (g + wd * s)`` (step 5)."""
    layers = zip(scores, g, strict=True)
    return [s - scaled((s * setting.weight_decay).add_(d), s, setting.lr, setting) for s, d in layers]


def combine(masks: Sequence[Sequence[Tensor]], own: Sequence[Tensor], setting: Setting) -> list[Tensor]:
    """Average the masks received (uint8, one list of layers per neighbour) to ``a'``; zeros if there are none.

    The paper's mean is ``plain``; some others look at the peer's ``own`` mask. With randomised response the mean is
    corrected for its bias and may leave [0, 1]. Raises ConfigError if ``setting.mean`` is not the name of a mean.
    """
    mean = mean_of(setting.mean)(masks, own)
    return unbiased(mean, setting.flip) if setting.flip and masks else mean


def fine_tune(scores: Sequence[Tensor], g: Sequence[Tensor], means: Sequence[Tensor], setting: Setting) -> list[Tensor]:
    """Step again where the new neighbours' masks agree: ``s <- s - lr_ft * g * a'`` (step 7, same gradient)."""
    layers = zip(scores, g, means, strict=True)
    return [s - scaled(d.clone(), s, setting.fine_tune_lr, setting).mul_(a) for s, d, a in layers]


# --- variants -------------------------------------------------------------------------------------------------------


def lifts(means: Sequence[Tensor], own: Sequence[Tensor], setting: Setting) -> list[Tensor]:
    """Return what replaces ``a`` in steps 1 to 6 and 8: ``lift * a + inertia * m``, ``m`` the own last mask."""
    lifted = [setting.lift * a for a in means] if setting.lift != 1 else list(means)
    return [a + setting.inertia * m for a, m in zip(lifted, own, strict=True)] if setting.inertia else lifted


def smoothed(before: Sequence[Tensor], now: Sequence[Tensor], setting: Setting) -> list[Tensor]:
    """Keep a share of the last round's ``a``: ``momentum * a + (1 - momentum) * a'``."""
    keep = setting.momentum
    if not keep:
        return list(now)
    return [keep * a + (1 - keep) * new for a, new in zip(before, now, strict=True)]


def directions(before: Sequence[Tensor], g: Sequence[Tensor], setting: Setting) -> list[Tensor]:
    """Return what replaces ``g`` in step 5 with a heavy ball: ``d' = heavy_ball * d + (1 - heavy_ball) * g``.

    ``before`` holds the last step's ``d``, zeros before the first step.
    """
    keep = setting.heavy_ball
    return [torch.lerp(new, d, keep) for d, new in zip(before, g, strict=True)] if keep else list(g)


def scaled(d: Tensor, s: Tensor, rate: float, setting: Setting) -> Tensor:
    """Return ``rate * d``, in place; with relative rates ``rate * mean|s| * d / mean|d|``, and zeros stay zeros."""
    if setting.relative and (size := d.abs().mean().item()):
        rate *= s.abs().mean().item() / size
    return d.mul_(rate)


def scheduled(setting: Setting, schedule: Schedule, done: float) -> Setting:
    """Return the constants when the share ``done`` of the run's rounds is over: both rates fall by the schedule."""
    falls = {Schedule.CONSTANT: 1.0, Schedule.LINEAR: 1 - done, Schedule.COSINE: (1 + cos(pi * done)) / 2}
    share = max(0.0, falls[schedule])
    return replace(setting, lr=setting.lr * share, fine_tune_lr=setting.fine_tune_lr * share)


def respond(masks: Sequence[Tensor], setting: Setting, noise: np.random.Generator) -> list[Tensor]:
    """Flip each bit of boolean masks with probability ``flip`` (randomised response), before they are sent."""
    if not setting.flip:
        return list(masks)
    return [m ^ torch.from_numpy(noise.random(tuple(m.shape)) < setting.flip).to(m.device) for m in masks]


def unbiased(means: Sequence[Tensor], flip: float) -> list[Tensor]:
    """Undo what randomised response does to a mean of many masks: ``(a - flip) / (1 - 2 * flip)``."""
    return [(a - flip) / (1 - 2 * flip) for a in means]
