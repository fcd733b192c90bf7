"""The zoo: plain torch modules whose convolution and linear weights get masked; nothing else in them learns."""

from collections.abc import Callable, Mapping
from math import prod

from torch import Tensor, nn
from torch.nn import functional as F

from dslth.config import ModelConfig, ModelName, Norm
from dslth.learning.layers import Elu, GroupNorm, InPlace, LocalResponse, MaxPool

__all__ = ["MODELS", "build"]


def _norm(config: ModelConfig, channels: int, alpha: float) -> GroupNorm | LocalResponse:
    return LocalResponse(alpha) if config.norm == Norm.LOCAL_RESPONSE else GroupNorm(channels // 8)


def _convolution(
    config: ModelConfig, channels: int, width: int, kernel: int, alpha: float, pool: MaxPool
) -> list[nn.Module]:
    """Build a convolution with its norm, ELU and pooling; group norm comes before the ELU, response norm after."""
    convolution = nn.Conv2d(channels, width, kernel, padding=1, bias=False)
    norm = _norm(config, width, alpha)
    activated = (norm, Elu()) if config.norm == Norm.GROUP else (Elu(), norm)
    return [convolution, InPlace(*activated, pool)]


def _mlp(config: ModelConfig, shape: tuple[int, ...], classes: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(prod(shape), 256), nn.ELU(), nn.Linear(256, 128), nn.ELU(), nn.Linear(128, classes)]


def _cnn(config: ModelConfig, shape: tuple[int, ...], classes: int) -> list[nn.Module]:
    """Build the paper's net on 3x32x32; on smaller images the same design with fewer or smaller convolutions."""
    channels, side, _ = shape
    layers: list[nn.Module] = []
    widths: tuple[int, ...]
    if side < 20:
        widths, hidden = (32, 64), 128
        for width, alpha in zip(widths, (2e-5, 1e-4), strict=True):
            layers += _convolution(config, channels, width, 3, alpha, MaxPool(2, 2))
            channels, side = width, side // 2
    else:
        widths, hidden = ((64, 128, 256), 192) if side >= 32 else ((32, 64, 128), 128)
        for width, alpha, pad in zip(widths, (2e-5, 1e-4, 1e-4), (0, 0, 1), strict=True):
            layers += _convolution(config, channels, width, 5, alpha, MaxPool(3, 2, pad))
            channels, side = width, (side - 2 + 2 * pad - 3) // 2 + 1
    return [*layers, nn.Flatten(), nn.Linear(channels * side**2, hidden), nn.ELU(), nn.Linear(hidden, classes)]


class _Residual(nn.Module):
    """Two 3x3 convolutions with a parameter-free shortcut (He et al. 2015, option A: subsample, pad channels)."""

    def __init__(self, config: ModelConfig, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.widen, self.stride = width - channels, stride
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            InPlace(_norm(config, width, 1e-4), Elu()),
            nn.Conv2d(width, width, 3, padding=1, bias=False), InPlace(_norm(config, width, 1e-4)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.widen))
        return F.elu(shortcut + self.body(x))


def _resnet8(config: ModelConfig, shape: tuple[int, ...], classes: int) -> list[nn.Module]:
    return [
        nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), InPlace(_norm(config, 16, 1e-4), Elu()),
        _Residual(config, 16, 16, 1), _Residual(config, 16, 32, 2), _Residual(config, 32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
    ]  # fmt: skip


MODELS: Mapping[ModelName, Callable[[ModelConfig, tuple[int, ...], int], list[nn.Module]]] = {
    ModelName.MLP: _mlp,
    ModelName.CNN: _cnn,
    ModelName.RESNET8: _resnet8,
}
"""All networks: the layers of each, from its settings, the images' shape and the number of classes."""

if MODELS.keys() != set(ModelName):
    raise AssertionError("networks and their names differ")


def build(config: ModelConfig, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Make a network of the zoo for images of ``shape`` (channels, side, side); weights are not set yet.

    Output: logits (n, classes). With ``output_elu`` the last layer passes an ELU, as in the authors' code.
    """
    layers = MODELS[ModelName(config.name)](config, shape, classes)
    return nn.Sequential(*layers, *([nn.ELU()] if config.output_elu else []))
