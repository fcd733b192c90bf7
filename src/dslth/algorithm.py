"""MCE-PL as pure functions: mask-exchange personalised learning, after arXiv 2504.17520.

Notation, per layer: weights ``w`` are frozen; scores ``s`` are what a peer learns; ``a`` is the mean of its
neighbours' masks (the peer itself not included); ``e`` the effective scores, the paper's intermediate aggregation
tensor; ``m`` the mask. All are float32 tensors of the layer's shape, ``m`` is boolean. Lists run over layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dslth.learning.supermask import FrozenNet, structured, top_k

__all__ = [
    "Gradient",
    "Setting",
    "combine",
    "effective_scores",
    "extract_mask",
    "extract_masks",
    "fine_tune",
    "gradient",
    "group_lasso",
    "local_step",
    "masked_weights",
    "straight_through",
]


@dataclass(frozen=True)
class Setting:
    """The constants of one peer: density of each layer, steps, weight decay, group lasso, structured removal."""

    densities: Sequence[float]
    lr: float
    weight_decay: float
    fine_tune_lr: float
    lasso: float = 0.0
    min_filter_weights: int = 0


@dataclass(frozen=True)
class Gradient:
    """``loss`` (mean cross entropy plus group lasso) and its straight-through gradient ``g`` per layer."""

    loss: float
    g: list[Tensor]


def combine(masks: Sequence[Sequence[Tensor]], own: Sequence[Tensor], rule: str) -> list[Tensor]:
    """Average neighbours' masks (one list of layers each) to ``a``, per layer; zeros where there are none.

    ``plain`` is the paper's mean. ``trimmed`` leaves out, at each weight, the highest and the lowest quarter of the
    votes, one each at least; ``median`` is the vote of most. ``similar`` weighs a neighbour by how much more its mask
    agrees with the ``own`` one than chance would have it.
    """
    count = len(masks)
    if rule == "similar":
        weights = [max(0.0, _agreement(mask, own)) for mask in masks]
        count_of_all = sum(weights)
        layers = [[w * m for w, m in zip(weights, layer, strict=True)] for layer in zip(*masks, strict=True)]
        return [torch.stack(layer).sum(0) / count_of_all for layer in layers] if count_of_all else _zeros(own)
    if not count:
        return _zeros(own)
    ones = [torch.stack(layer).sum(0) for layer in zip(*masks, strict=True)]
    if rule == "median":
        return [(2 * n > count).float() + 0.5 * (2 * n == count) for n in ones]
    cut = max(1, count // 4) if rule == "trimmed" and count > 2 else 0
    return [(n - cut).clamp(0, count - 2 * cut) / (count - 2 * cut) for n in ones]


def _zeros(layers: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(layer) for layer in layers]


def _agreement(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return Cohen's kappa of two masks over all layers: 1 where they are the same, 0 where no more than by chance."""
    alike = sum(float((x == y).sum()) for x, y in zip(a, b, strict=True))
    chance = sum(
        float(x.sum() * y.sum() + (x.numel() - x.sum()) * (y.numel() - y.sum())) / x.numel()
        for x, y in zip(a, b, strict=True)
    )
    total = sum(x.numel() for x in a)
    return (alike - chance) / (total - chance) if total > chance else 0.0


def effective_scores(s: Tensor, a: Tensor) -> Tensor:
    """Lift the scores where neighbours keep the weight: ``e = s + mean|s| * sign(s) * a`` (step 1)."""
    return s + s.abs().mean() * s.sign() * a


def extract_mask(s: Tensor, a: Tensor, density: float, min_filter_weights: int = 0) -> Tensor:
    """Return the mask of one layer, the top ``density`` share of ``|e|`` (step 2), then structured removal."""
    return structured(top_k(effective_scores(s, a), density), min_filter_weights)


def extract_masks(scores: Sequence[Tensor], means: Sequence[Tensor], setting: Setting) -> list[Tensor]:
    """Return the masks of all layers."""
    layers = zip(scores, means, setting.densities, strict=True)
    return [extract_mask(s, a, k, setting.min_filter_weights) for s, a, k in layers]


def masked_weights(net: FrozenNet, masks: Sequence[Tensor]) -> list[Tensor]:
    """Return ``w * m`` per layer."""
    return [w * m for w, m in zip(net.weights, masks, strict=True)]


def group_lasso(effective: Sequence[Tensor]) -> Tensor:
    """Sum ``||e[f]||_2`` over layers and filters (convolution output channels, linear rows); a scalar (step 3)."""
    return torch.stack([e.flatten(1).norm(dim=1).sum() for e in effective]).sum()


def straight_through(grad: Tensor, w: Tensor, s: Tensor) -> Tensor:
    """Turn ``dL/d(w*m)`` into the gradient of the scores, kept or not: ``dL/d(w*m) * w * sign(s)`` (step 4)."""
    return grad * w * s.sign()


def gradient(
    net: FrozenNet,
    scores: Sequence[Tensor],
    means: Sequence[Tensor],
    images: Tensor,
    labels: Tensor,
    setting: Setting,
) -> Gradient:
    """Run one minibatch, images (n, c, h, w) and labels (n,), forward and back (steps 1 to 4)."""
    masked = masked_weights(net, extract_masks(scores, means, setting))
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
    return [s - setting.lr * (d + setting.weight_decay * s) for s, d in zip(scores, g, strict=True)]


def fine_tune(scores: Sequence[Tensor], g: Sequence[Tensor], means: Sequence[Tensor], setting: Setting) -> list[Tensor]:
    """Step again where the new neighbours' masks agree: ``s <- s - lr_ft * g * a'`` (step 7, same gradient)."""
    return [s - setting.fine_tune_lr * d * a for s, d, a in zip(scores, g, means, strict=True)]
