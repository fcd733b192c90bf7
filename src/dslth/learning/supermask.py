"""The frozen random network, and how scores become a mask over it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dslth import config
from dslth.config import Init
from dslth.errors import ConfigError
from dslth.masks import largest
from dslth.seeds import Stream

__all__ = [
    "FrozenNet",
    "bernoulli_masks",
    "densities",
    "dropped",
    "first_magnitudes",
    "freeze",
    "initial_scores",
    "kept",
    "structured",
    "top_k",
    "unit_scores",
]


@dataclass(frozen=True)
class FrozenNet:
    """A network whose convolution and linear ``weights`` (one tensor per layer, in order) never change."""

    module: nn.Module
    names: tuple[str, ...]
    weights: tuple[Tensor, ...]

    def __call__(self, masked: Sequence[Tensor], images: Tensor) -> Tensor:
        """Run images (n, c, h, w) through the network with masked weights ``w * m`` in place of its own."""
        logits: Tensor = torch.func.functional_call(self.module, dict(zip(self.names, masked, strict=True)), (images,))
        return logits

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of weights of each masked layer."""
        return tuple(weight.numel() for weight in self.weights)


def freeze(module: nn.Module, seed: int, init: Init, density: config.Density, device: str = "cpu") -> FrozenNet:
    """Draw a module's weights and biases from the run's seed alone, the same on any machine; freeze them on a device.

    ``default``: uniform in +-1/sqrt(fan_in), torch's own initialisation. ``signed``: +-sqrt(2 / (fan_in * k)), the
    signed Kaiming constant of Ramanujan et al. 2020 (biases 0); ``k`` is the run's density, not one peer's.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    names = tuple(f"{name}.weight" for name in layers)
    shapes = [tuple(layer.weight.shape) for layer in layers.values()]
    for number, (layer, k) in enumerate(zip(layers.values(), densities(density, shapes), strict=True)):
        shape = tuple(layer.weight.shape)
        fan_in = prod(shape[1:])
        uniform = 2 * Stream(seed, "weights", number).uniform(*shape) - 1
        sign = np.where(uniform < 0, -1.0, 1.0)
        weight = sign * sqrt(2 / (fan_in * k)) if init == Init.SIGNED else uniform / sqrt(fan_in)
        layer.weight.data = torch.from_numpy(weight.astype(np.float32))
        if layer.bias is not None:
            bias = (2 * Stream(seed, "bias", number).uniform(shape[0]) - 1) / np.float32(sqrt(fan_in))
            layer.bias.data = torch.from_numpy(bias if init == Init.DEFAULT else np.zeros_like(bias))
    module.requires_grad_(requires_grad=False).eval().to(device)
    return FrozenNet(module, names, tuple(layer.weight.data for layer in layers.values()))


def densities(density: config.Density, shapes: Sequence[tuple[int, ...]]) -> tuple[float, ...]:
    """Return the density of each layer; layers of more than two dimensions are convolutions.

    Raises ConfigError if a list of densities does not fit the layers.
    """
    if isinstance(density, float | int):
        return (float(density),) * len(shapes)
    if isinstance(density, config.ByKind):
        return tuple(density.conv if len(shape) > 2 else density.linear for shape in shapes)
    if len(density) != len(shapes):
        raise ConfigError(f"density: {len(density)} values for a network of {len(shapes)} masked layers")
    return tuple(density)


def initial_scores(net: FrozenNet, seed: int, owner: int | Literal["common"]) -> list[Tensor]:
    """Draw first scores, Kaiming-uniform with a = sqrt(5): uniform in +-1/sqrt(fan_in); float32, one per layer."""
    shapes = [tuple(weight.shape) for weight in net.weights]
    return [
        torch.from_numpy(unit_scores(seed, owner, number, shape) / np.float32(sqrt(prod(shape[1:]))))
        for number, shape in enumerate(shapes)
    ]


def unit_scores(seed: int, owner: int | str, layer: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draw a layer's first scores in units of their bound: uniform in [-1, 1), exact on any machine."""
    return 2 * Stream(seed, "scores", owner, layer).uniform(*shape) - 1


def first_magnitudes(seed: int, owner: int | str, masks: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.float32]]:
    """Work out the magnitudes of the first effective scores, flat, one array a layer; ``masks`` are the first ones.

    Computed in units of the scores' bound, and so exact: ``|e| = |s| + mean|s| * a`` with ``mean|s| = 1/2``.
    """
    scores = [unit_scores(seed, owner, number, mask.shape) for number, mask in enumerate(masks)]
    return [(np.abs(s) + np.float32(0.5) * a).ravel() for s, a in zip(scores, masks, strict=True)]


def bernoulli_masks(net: FrozenNet, seed: int, density: config.Density) -> list[Tensor]:
    """Draw the common Bernoulli(k) mask that stands for all neighbours before the first exchange; float32."""
    shapes = [tuple(weight.shape) for weight in net.weights]
    return [
        torch.from_numpy(Stream(seed, "first mask", layer).uniform(*shape) < k).float()
        for layer, (shape, k) in enumerate(zip(shapes, densities(density, shapes), strict=True))
    ]


def dropped(n: int, k: float) -> int:
    """Count the weights that a mask of density ``k`` over ``n`` weights drops: ``int((1-k)*n)`` in IEEE double."""
    return int((1 - k) * n)


def top_k(scores: Tensor, k: float) -> Tensor:
    """Mark the top ``k`` share of scores by magnitude (design, step 2): a boolean tensor of the same shape.

    Among equal magnitudes at the threshold those with lower flat index are dropped first.
    """
    magnitudes = scores.detach().abs().reshape(-1).cpu().numpy()
    mask, _ = largest(magnitudes, magnitudes.size - dropped(magnitudes.size, k))
    return torch.from_numpy(mask).reshape(scores.shape).to(scores.device)


def kept(weights: Tensor, mask: Tensor) -> Tensor:
    """Return ``w * m`` of float32 weights and a boolean mask."""
    if weights.is_cpu:  # where torch converts the mask first, in twice the time
        return torch.from_numpy(weights.numpy() * mask.numpy())
    return weights * mask


def structured(mask: Tensor, min_filter_weights: int) -> Tensor:
    """Drop every filter (conv output channel, linear row) that keeps at most ``min_filter_weights``; 0: none."""
    if min_filter_weights == 0:
        return mask
    kept = mask.flatten(1).sum(1)
    return mask & (kept > min_filter_weights).reshape(-1, *[1] * (mask.dim() - 1))
