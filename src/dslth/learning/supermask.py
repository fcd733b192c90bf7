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
    "LAYERS",
    "FrozenNet",
    "bernoulli_masks",
    "densities",
    "dropped",
    "first_magnitudes",
    "freeze",
    "initial_scores",
    "kept",
    "masked",
    "structured",
    "top_k",
    "unit_scores",
]


LAYERS = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.Embedding, nn.MultiheadAttention),
)
"""Layers whose weights get masked."""
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Of attention; the last one, ``out_proj``, is a linear layer in it."""


@dataclass(frozen=True)
class FrozenNet:
    """A network whose ``weights`` (one tensor per masked layer, in order; ``names`` are theirs) never change."""

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


def masked(module: nn.Module) -> dict[str, tuple[nn.Module, Tensor]]:
    """Return the weights of a module that get masked, by name, each with its layer.

    They are those of linear, convolution and embedding layers, and attention's projections. One that layers share is
    there once.
    """
    found: dict[str, tuple[nn.Module, Tensor]] = {}
    seen = set()
    for prefix, layer in module.named_modules():
        for name in PROJECTIONS if isinstance(layer, nn.MultiheadAttention) else ("weight",):
            weight = layer._parameters.get(name) if isinstance(layer, LAYERS) else None
            if weight is not None and id(weight) not in seen:
                found[f"{prefix}.{name}" if prefix else name] = layer, weight
                seen.add(id(weight))
    return found


def freeze(module: nn.Module, seed: int, init: Init, density: config.Density, device: str = "cpu") -> FrozenNet:
    """Draw a module's weights and biases from the run's seed alone, the same on any machine; freeze them on a device.

    ``default``: uniform in +-1/sqrt(fan_in), torch's own initialisation. ``signed``: +-sqrt(2 / (fan_in * k)), the
    signed Kaiming constant of Ramanujan et al. 2020 (biases 0); ``k`` is the run's density, not one peer's.
    """
    layers = masked(module)
    shapes = [tuple(weight.shape) for _, weight in layers.values()]
    for number, ((layer, parameter), k) in enumerate(zip(layers.values(), densities(density, shapes), strict=True)):
        shape, fan_in = tuple(parameter.shape), _fan_in(layer, parameter)
        uniform = 2 * Stream(seed, "weights", number).uniform(*shape) - 1
        sign = np.where(uniform < 0, -1.0, 1.0)
        weight = sign * sqrt(2 / (fan_in * k)) if init == Init.SIGNED else uniform / sqrt(fan_in)
        parameter.data = torch.from_numpy(weight.astype(np.float32))
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            parameter.data[layer.padding_idx] = 0  # what fills up a sequence says nothing
        if getattr(layer, "bias", None) is not None:
            assert isinstance(layer.bias, Tensor)  # noqa: S101
            bias = (2 * Stream(seed, "bias", number).uniform(*layer.bias.shape) - 1) / np.float32(sqrt(fan_in))
            layer.bias.data = torch.from_numpy(bias if init == Init.DEFAULT else np.zeros_like(bias))
    module.requires_grad_(requires_grad=False).eval().to(device)
    return FrozenNet(module, tuple(layers), tuple(weight.data for _, weight in layers.values()))


def _fan_in(layer: nn.Module, weight: Tensor) -> int:
    """Count the weights that add up to one number of a layer's output."""
    if isinstance(layer, nn.Embedding):
        return 1
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return weight.shape[0] // layer.groups * prod(weight.shape[2:])
    return prod(weight.shape[1:])


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


def first_magnitudes(
    seed: int, owner: int | str, masks: Sequence[NDArray[np.bool_]], lift: float = 1.0
) -> list[NDArray[np.float32]]:
    """Work out the magnitudes of the first effective scores, flat, one array a layer; ``masks`` are the first ones.

    Computed in units of the scores' bound, and so exact: ``|e| = |s| + lift * mean|s| * a`` with ``mean|s| = 1/2``.
    """
    scores = [unit_scores(seed, owner, number, mask.shape) for number, mask in enumerate(masks)]
    return [(np.abs(s) + np.float32(0.5 * lift) * a).ravel() for s, a in zip(scores, masks, strict=True)]


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
