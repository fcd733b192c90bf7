"""Layers that torch has too, computed faster on a processor: the same results, bit for bit, in time and memory less."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

__all__ = ["LocalResponseNorm", "MaxPool"]

PIECE = 1 << 16
"""Numbers of a batch that are worked on at a time: so few that they stay in a core's cache from step to step."""


class MaxPool(nn.Module):
    """``torch.nn.MaxPool2d``, by torch's kernel for the channels-last layout: it alone is vectorised.

    Values and gradients come back in the usual layout. The gradient is kept by the places of the maxima alone.
    """

    def __init__(self, kernel: int, stride: int, padding: int = 0) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """Pool a batch (n, c, h, w)."""
        pooled: Tensor = _MaxPool.apply(x, self.kernel, self.stride, self.padding)  # type: ignore[no-untyped-call]
        return pooled


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
        last = x.contiguous(memory_format=torch.channels_last)
        values, places = F.max_pool2d(last, kernel, stride, padding, return_indices=True)
        ctx.save_for_backward(places.contiguous())
        ctx.shape = x.shape  # type: ignore[attr-defined]
        return values.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (places,), shape = ctx.saved_tensors, ctx.shape  # type: ignore[attr-defined]
        planes = grad.new_zeros(*shape[:2], shape[2:].numel())
        planes.scatter_add_(2, places.flatten(2), grad.flatten(2))
        return planes.view(shape), None, None, None


class LocalResponseNorm(nn.Module):
    """``y_c = x_c * (1 + alpha/4 * sum_{c-2 <= c' <= c+1} x_c'^2) ** -0.75`` over channels; the paper's AlexNet.

    The same function as ``torch.nn.LocalResponseNorm(4, alpha)``, without its detour over a 3-d average pool.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch (n, c, h, w)."""
        normalised: Tensor = _LocalResponse.apply(x, self.alpha / 4)  # type: ignore[no-untyped-call]
        return normalised


class _LocalResponse(torch.autograd.Function):
    """``y = x * p`` with ``p = r * sqrt(r)``, ``r = t ** -0.5``, ``t = 1 + scale * sums of squares``.

    Backward goes through these in reverse, sum by sum in the order of torch's own gradients of them.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale = scale  # type: ignore[attr-defined]
        result = torch.empty_like(x)
        for some, y in _pieces(x, result):
            r = _inverse(some, scale)
            torch.mul(some, r.mul_(r.sqrt()), out=y)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,), scale = ctx.saved_tensors, ctx.scale  # type: ignore[attr-defined]
        result = torch.empty_like(x)
        for some, pull, by_x in _pieces(x, grad, result):
            r = _inverse(some, scale)
            root = r.sqrt()
            torch.mul(pull, r * root, out=by_x)
            by_p = pull * some
            by_r = by_p * root
            by_r += by_p.mul_(r).div_(root.mul_(2))
            by_sums = by_r.mul_(-0.5).mul_(r.pow(3)).mul_(scale)
            by_square = _four(F.pad(by_sums, (0, 0, 0, 0, 1, 2))).mul_(some)
            by_x += by_square  # twice, for both factors of the square
            by_x += by_square
        return result, None


def _pieces(*batches: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Walk through batches of one shape side by side, a few images at a time."""
    size = max(1, PIECE // batches[0].shape[1:].numel())
    return zip(*(torch.split(batch, size) for batch in batches), strict=True)


def _inverse(x: Tensor, scale: float) -> Tensor:
    """Return ``(1 + scale * sum_{c-2 <= c' <= c+1} x_c'^2) ** -0.5``."""
    return _four(F.pad(x * x, (0, 0, 0, 0, 2, 1))).mul_(scale).add_(1).rsqrt_()


def _four(padded: Tensor) -> Tensor:
    """Add up each channel and the three after it, first to last; three channels fewer come out than went in."""
    channels = padded.shape[1] - 3
    sums = padded[:, :channels] + padded[:, 1 : channels + 1]
    for first in (2, 3):
        sums += padded[:, first : first + channels]
    return sums
