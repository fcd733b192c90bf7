"""From a ticket to a network that classifies: its frozen net made again, and plain torch modules of it."""

from copy import deepcopy
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dslth.config import Inputs
from dslth.errors import MissingFileError
from dslth.learner import normalised, threads
from dslth.learning import networks
from dslth.learning.dataset import Values
from dslth.learning.layers import Elu, GroupNorm, InPlace, LocalResponse, MaxPool
from dslth.learning.supermask import FrozenNet
from dslth.personal.inputs import inputs_of
from dslth.runs.tickets import Ticket

__all__ = ["AnyGroupNorm", "Classifier", "PlainLocalResponse", "dense", "logits", "net_of", "pieces"]

BATCH = 128
"""Images that are classified at a time."""


def net_of(ticket: Ticket) -> FrozenNet:
    """Make a ticket's frozen network again, from its seed.

    Raises MissingFileError if its layers are not those of the ticket, ConfigError if it is own code that nobody named.
    """
    net = networks.frozen(ticket.experiment, inputs_of(ticket))
    if tuple(tuple(weight.shape) for weight in net.weights) != ticket.shapes:
        raise MissingFileError(f"the ticket's layers are not those of its network, {ticket.experiment.model.title}")
    return net


def dense(ticket: Ticket) -> nn.Module:
    """Return the ticket's network as a plain torch module, its weights masked: what other programs can read.

    Input: float32 (n, channels, height, width) in [-1, 1], or what own data are; output: logits (n, classes). Raises
    what ``net_of`` does.
    """
    net = net_of(ticket)
    state = net.module.state_dict()
    for name, weight, mask in zip(net.names, net.weights, ticket.mask.arrays(), strict=True):
        state[name] = weight * torch.from_numpy(mask).reshape(weight.shape)
    net.module.load_state_dict(state)
    return _plain(net.module)


class Classifier(nn.Module):
    """A network with the normalisation before it. Input: samples as people have them; output: logits."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, net: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.net, self.number = net, inputs.number
        alike = (-1, *[1] * (len(inputs.shape) - 1))
        self.register_buffer("mean", torch.tensor(inputs.mean or (0.0,)).reshape(alike))
        self.register_buffer("deviation", torch.tensor(inputs.deviation or (1.0,)).reshape(alike))

    def forward(self, samples: Tensor) -> Tensor:
        """Classify bytes (uint8), features (float32) or tokens (int64), (n, ...)."""
        features = (samples - self.mean) / self.deviation if self.number == "float32" else normalised(samples)
        result: Tensor = self.net(features)
        return result


@torch.inference_mode()
def logits(net: nn.Module, images: Values) -> NDArray[np.float32]:
    """Classify samples (n, ...) of a data set with a network for normalised ones; return logits (n, classes)."""
    with threads(1):
        return np.concatenate([net(normalised(torch.tensor(some))).numpy() for some in pieces(images)])


def pieces(images: Values) -> list[Values]:
    """Cut images into batches; one of no image if there is none."""
    ends = [*range(0, max(1, len(images)), BATCH), len(images)]
    return [images[start:end] for start, end in pairwise(ends)]


class PlainLocalResponse(nn.Module):
    """The paper's local response norm, of parts that any program knows; see ``layers.LocalResponse``."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch (n, c, h, w)."""
        channels = x.shape[1]
        squares = F.pad(x * x, (0, 0, 0, 0, 2, 1))
        sums = torch.stack([squares[:, first : first + channels] for first in range(4)]).sum(0)
        r = (1 + self.scale * sums).rsqrt()
        return x * r * r.sqrt()  # a power would take many times as long


def _plain(module: nn.Module) -> nn.Module:
    """Return a copy with torch's own layers in place of those that are computed in one go; names stay the same."""
    copy = deepcopy(module)
    for parent in list(copy.modules()):
        for name, child in parent.named_children():
            if isinstance(child, InPlace):
                setattr(parent, name, nn.Sequential(*map(_torchs_own, child.layers)))
    return copy


def _torchs_own(layer: object) -> nn.Module:
    match layer:
        case GroupNorm():
            return AnyGroupNorm(layer.groups)
        case Elu():
            return nn.ELU()
        case MaxPool():
            return nn.MaxPool2d(layer.kernel, layer.stride, layer.padding)
        case LocalResponse():
            return PlainLocalResponse(layer.scale)
    raise AssertionError(f"a layer {type(layer).__name__} has no plain form")


class AnyGroupNorm(nn.Module):
    """Group norm without parameters, of as many channels as come."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch (n, c, h, w)."""
        return F.group_norm(x, self.groups)
