"""How a peer averages its neighbours' masks to ``a``: the registry of means.

A mean takes the masks that neighbours sent, one list of layers each, and the peer's own mask: tensors of 0 and 1, the
neighbours' uint8, its own boolean. It returns ``a``, float32, per layer, in [0, 1]; zeros if there are no masks.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dslth.config import MeanName, plugins

__all__ = ["MEANS", "Mean", "mean_of"]

Layers = Sequence[Tensor]
Mean = Callable[[Sequence[Layers], Layers], list[Tensor]]


def plain(masks: Sequence[Layers], own: Layers) -> list[Tensor]:
    """Average as the paper does."""
    return _without_extremes(masks, own, 0)


def trimmed(masks: Sequence[Layers], own: Layers) -> list[Tensor]:
    """Leave out, at each weight, the highest and the lowest quarter of the votes, one each at least."""
    return _without_extremes(masks, own, max(1, len(masks) // 4) if len(masks) > 2 else 0)


def median(masks: Sequence[Layers], own: Layers) -> list[Tensor]:
    """Take, at each weight, the vote of the majority; one half if as many are for it as against it."""
    count = len(masks)
    return [(2 * n > count).float() + 0.5 * (2 * n == count) for n in _votes(masks)] if masks else _zeros(own)


def similar(masks: Sequence[Layers], own: Layers) -> list[Tensor]:
    """Weigh a neighbour by how much more its mask agrees with the ``own`` one than by chance."""
    mine = [layer.float() for layer in own]
    weights = [max(0.0, _agreement(mask, mine)) for mask in masks]
    total = sum(weights)
    if not total:
        return _zeros(own)
    layers = [[w * m for w, m in zip(weights, layer, strict=True)] for layer in zip(*masks, strict=True)]
    return [torch.stack(layer).sum(0) / total for layer in layers]


MEANS: Mapping[MeanName, Mean] = {
    MeanName.PLAIN: plain,
    MeanName.TRIMMED: trimmed,
    MeanName.MEDIAN: median,
    MeanName.SIMILAR: similar,
}
"""All means by their names in ``experiment.algorithm.mean``."""
if MEANS.keys() != set(MeanName):
    raise AssertionError("means and their names differ")


def mean_of(name: str) -> Mean:
    """Return a mean by its name, or a plugin's; raises ConfigError if there is none of that name here."""
    if name in MEANS:
        return MEANS[MeanName(name)]
    mean: Mean = plugins.loaded("means", name)
    return mean


def _without_extremes(masks: Sequence[Layers], own: Layers, cut: int) -> list[Tensor]:
    count = len(masks) - 2 * cut
    return [(n - cut).clamp(0, count) / count for n in _votes(masks)] if masks else _zeros(own)


def _votes(masks: Sequence[Layers]) -> list[Tensor]:
    """Count the neighbours that keep each weight, as integers: to add up floats takes four times as long."""
    return [sum(layer[1:], start=layer[0].to(torch.int16)) for layer in zip(*masks, strict=True)]


def _zeros(layers: Layers) -> list[Tensor]:
    return [torch.zeros_like(layer, dtype=torch.float32) for layer in layers]


def _agreement(a: Layers, b: Layers) -> float:
    """Return Cohen's kappa of two masks over all layers: 1 if they are the same, 0 if they agree only by chance."""
    alike = sum(float((x == y).sum()) for x, y in zip(a, b, strict=True))
    chance = sum(
        float(x.sum() * y.sum() + (x.numel() - x.sum()) * (y.numel() - y.sum())) / x.numel()
        for x, y in zip(a, b, strict=True)
    )
    total = sum(x.numel() for x in a)
    return (alike - chance) / (total - chance) if total > chance else 0.0
