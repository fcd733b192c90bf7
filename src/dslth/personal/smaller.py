"""The physically smaller network of a structured ticket: its dead filters are gone, and it predicts the same.

A filter (convolution output channel, linear row) without a kept weight puts out a constant. What the next layer makes
of it is the same for every image, or every image's group of channels, so it is worked into that layer:

- after a linear layer the constant is its bias; the next layer's bias takes it up;
- local response norm keeps 0 at 0: the channel is left out, and only the norm sees it, as a zero;
- group norm turns all dead channels of a group into one and the same number: one channel stands for all of them, and
  the next layer's weights for them are added up.

Only filters between two layers of one chain go; a residual sum, and the logits, keep their width.
"""

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dslth.errors import ConfigError
from dslth.learner import threads
from dslth.personal.nets import AnyGroupNorm, PlainLocalResponse

__all__ = ["Widened", "count", "milliseconds", "without_dead_filters"]

Layer = nn.Conv2d | nn.Linear
BETWEEN = (AnyGroupNorm, PlainLocalResponse, nn.ELU, nn.MaxPool2d, nn.Flatten)
REPEATS = 30


class Widened(nn.Module):
    """A norm over all channels, of which only those that are ``live`` come, ascending, and ``out`` go on."""

    place: Tensor
    out: Tensor

    def __init__(self, norm: nn.Module, live: Sequence[int], channels: int, out: Sequence[int]) -> None:
        super().__init__()
        self.norm = norm
        place = torch.full((channels,), len(live))  # a channel of zeros, which is put behind those that come
        place[torch.tensor(live)] = torch.arange(len(live))
        self.register_buffer("place", place)
        self.register_buffer("out", torch.tensor(out))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch (n, live, h, w); return (n, out, h, w)."""
        whole = F.pad(x, (0, 0, 0, 0, 0, 1)).index_select(1, self.place)
        result: Tensor = self.norm(whole).index_select(1, self.out)
        return result


@dataclass(frozen=True)
class Passed:
    """What of a layer's channels goes on: ``live`` ones are computed; ``out`` are those that reach the next layer.

    ``stands`` gives for each channel the number in ``out`` of the one that stands for it; None if it is left out.
    """

    live: Sequence[int]
    out: Sequence[int]
    stands: Sequence[int | None]


def without_dead_filters(net: nn.Module) -> nn.Module:
    """Return a network like a plain dense one, ``nets.dense``, without dead filters.

    Raises ConfigError if no filter can go.
    """
    smaller = _shrunk(deepcopy(net))
    if count(smaller) == count(net):
        raise ConfigError("no filter of this ticket is dead; learn it with algorithm.min_filter_weights, as in 20")
    return smaller


def count(net: nn.Module) -> int:
    """Count weights and biases."""
    return sum(parameter.numel() for parameter in net.parameters())


@torch.inference_mode()
def milliseconds(nets_: Sequence[nn.Module], shape: tuple[int, ...]) -> list[float]:
    """Return how long each network takes for one normalised image on one thread: the least of many tries."""
    image, least = torch.zeros(1, *shape), [float("inf")] * len(nets_)
    with threads(1):
        for _ in range(REPEATS):
            for number, net in enumerate(nets_):
                start = time.perf_counter()
                net(image)
                least[number] = min(least[number], 1000 * (time.perf_counter() - start))
    return least


def _shrunk(module: nn.Module) -> nn.Module:
    """Shrink each chain of a network; a module that is no chain keeps its form, with its own chains shrunk."""
    if not isinstance(module, nn.Sequential):
        for name, child in module.named_children():
            setattr(module, name, _shrunk(child))
        return module
    chain = [
        child if isinstance(child, (*BETWEEN, nn.Conv2d, nn.Linear)) else _shrunk(child) for child in _flat(module)
    ]
    layers = [number for number, child in enumerate(chain) if isinstance(child, nn.Conv2d | nn.Linear)]
    for at, then in pairwise(layers):
        if all(isinstance(child, BETWEEN) for child in chain[at + 1 : then]):
            _shrink(chain, at, then)
    return nn.Sequential(*chain)


def _flat(chain: nn.Sequential) -> list[nn.Module]:
    return [part for child in chain for part in (_flat(child) if isinstance(child, nn.Sequential) else [child])]


def _shrink(chain: list[nn.Module], at: int, then: int) -> None:
    """Remove the dead filters of the layer ``at``, of which the layer ``then`` is the next."""
    layer, following = chain[at], chain[then]
    assert isinstance(layer, nn.Conv2d | nn.Linear)  # noqa: S101
    assert isinstance(following, nn.Conv2d | nn.Linear)  # noqa: S101
    norm = next((n for n in range(at + 1, then) if isinstance(chain[n], AnyGroupNorm | PlainLocalResponse)), None)
    if layer.bias is not None and (norm is not None or following.bias is None or isinstance(layer, nn.Conv2d)):
        return  # what a dead filter puts out cannot be worked into the next layer's bias
    passed = _passed(layer, chain[norm] if norm is not None else None)
    if norm is not None:
        chain[norm] = Widened(chain[norm], passed.live, len(passed.stands), passed.out)
    elif layer.bias is not None and following.bias is not None:
        dead = torch.tensor([c for c, place in enumerate(passed.stands) if place is None], dtype=torch.long)
        constant = layer.bias[dead]
        for child in chain[at + 1 : then]:
            constant = child(constant) if isinstance(child, nn.ELU) else constant
        following.bias.data += following.weight[:, dead] @ constant
    chain[at] = _with(layer, layer.weight[torch.tensor(passed.live)], rows=passed.live)
    by_channel = following.weight.reshape(len(following.weight), len(passed.stands), -1)
    merged = by_channel.new_zeros(len(following.weight), len(passed.out), by_channel.shape[2])
    for channel, place in enumerate(passed.stands):
        if place is not None:
            merged[:, place] += by_channel[:, channel]
    chain[then] = _with(following, merged.reshape(len(merged), -1, *following.weight.shape[2:]))


def _passed(layer: Layer, norm: nn.Module | None) -> Passed:
    """Work out which channels of a layer must be computed, and which must reach the next one."""
    filters = len(layer.weight)
    alive = layer.weight.flatten(1).any(1).tolist()
    live = [c for c in range(filters) if alive[c]] or [0]
    out, first, size = live, dict[int, int](), filters
    if isinstance(norm, AnyGroupNorm):
        size = filters // norm.groups
        for c in range(filters):
            if c not in live and any(alive[c // size * size : c // size * size + size]):
                first.setdefault(c // size, c)
        out = sorted([*live, *first.values()])
    number = {c: place for place, c in enumerate(out)}
    stands = [number[c] if c in live else number.get(first.get(c // size, -1)) for c in range(filters)]
    return Passed(live, out, stands)


def _with(layer: Layer, weight: Tensor, rows: Sequence[int] | None = None) -> Layer:
    """Return a layer like another with these weights, and the biases of some of its rows."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        made: Layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    else:
        made = nn.Conv2d(
            weight.shape[1], weight.shape[0], weight.shape[2:], layer.stride, layer.padding, bias=bias  # type: ignore[arg-type]
        )  # fmt: skip
    made.weight.data = weight.detach().contiguous()
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias[torch.tensor(rows)] if rows is not None else layer.bias)
    return made.requires_grad_(requires_grad=False)
