"""Other ways to learn together, each as what one peer learns, says and takes in: what MCE-PL is compared with.

Here weights and biases learn, from torch's own initialisation drawn from the run's seed, by SGD with momentum that each
peer keeps to itself. Peers start alike, so first weights are never sent. Numbers on the wire are raw, little-endian.

Each method's learning rate is that of RATES with which it ends best by ``dslth bench comm -t ring --tune`` (digits, 20
rounds); for DisPFL the next lower, because it ends .002 below that one there and well above it on Fashion-MNIST.
"""

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import cos, isfinite, pi
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dslth.config import ExperimentConfig, Init, RunConfig
from dslth.learner import Samples
from dslth.learning import data, models, supermask
from dslth.run.events import Accuracies
from dslth.seeds import Stream
from dslth.topology import Topology

__all__ = ["METHODS", "RATES", "Alone", "DisPfl", "Dpsgd", "HalfDpsgd", "Method", "TopKDpsgd"]

RATES = (0.01, 0.03, 0.05, 0.1)
"""Learning rates that ``--tune`` tries for every method."""
MOMENTUM = 0.9
"""Without it D-PSGD ends at .927 on digits, ring of ten, 20 rounds, at its best rate; with it at .984."""


class _Net:
    """The run's network as a function of all its parameters in one flat float32 vector."""

    def __init__(self, experiment: ExperimentConfig, classes: int) -> None:
        self._module = models.build(experiment.model, data.DATASETS[experiment.data.name].shape, classes)
        frozen = supermask.freeze(self._module, experiment.seed, Init.DEFAULT, experiment.algorithm.density)
        parameters = dict(self._module.named_parameters())
        self.masked_sizes = frozen.sizes
        self.shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        self.lengths = [parameter.numel() for parameter in parameters.values()]
        self.is_weight = [name in frozen.names for name in parameters]
        self.first = torch.cat([parameter.flatten() for parameter in parameters.values()])

    def __call__(self, x: Tensor, images: Tensor) -> Tensor:
        parts = zip(self.shapes.items(), torch.split(x, self.lengths), strict=True)
        parameters = {name: part.view(shape) for (name, shape), part in parts}
        logits: Tensor = torch.func.functional_call(self._module, parameters, (images,))
        return logits


class Method(ABC):
    """What one peer learns and says. ``x`` is its model, flat; ``weights`` how much each neighbour counts.

    The weights are Metropolis-Hastings: ``1 / (1 + max(degree_i, degree_j))``, the rest is the peer's own.
    """

    lr: ClassVar[float]
    exchanges: ClassVar[bool] = True
    incremental: ClassVar[bool] = False
    """Whether a message means something only to who has all those before it."""

    def __init__(self, peer: int, run: RunConfig, topology: Topology, lr: float | None = None) -> None:
        self.device, self.run = run.device(peer), run
        self.samples = Samples(peer, topology.peers, run.experiment, self.device)
        self.net = _Net(run.experiment, self.samples.classes)
        self.x, self.velocity = self.net.first.clone(), torch.zeros_like(self.net.first)
        self.rate = self.lr if lr is None else lr
        degrees = {other: len(topology.neighbours(other)) for other in (peer, *topology.neighbours(peer))}
        own = degrees.pop(peer)
        self.weights = {other: 1 / (1 + max(own, degree)) for other, degree in degrees.items()}

    def learn(self, round_: int) -> float:
        """Take the round's local steps, on the batches that MCE-PL takes; gives the mean loss, finite in any case."""
        losses = []
        for step in range(self.run.experiment.algorithm.local_steps):
            images, labels = self.samples.batch(round_, step)
            x = self.x.clone().requires_grad_()
            loss = F.cross_entropy(self.net(x, images), labels)
            self.descend(torch.autograd.grad(loss, x)[0])
            losses.append(loss.item())
        mean = float(np.mean(losses))
        return mean if isfinite(mean) else sys.float_info.max

    def descend(self, gradient: Tensor) -> None:
        """Take one step of SGD with momentum."""
        self.velocity = MOMENTUM * self.velocity + gradient
        self.x -= self.rate * self.velocity

    def evaluate(self, x: Tensor) -> Accuracies:
        """Classify both test sets with a model."""
        return self.samples.accuracies(lambda images: self.net(x, images))

    @property
    def digest(self) -> str:
        """Name the model, where a report names a mask, by SHA-256."""
        return hashlib.sha256(self.x.numpy().tobytes()).hexdigest()

    @property
    def density(self) -> tuple[float, ...]:
        """Share of weights that are not zero, layer by layer; biases are not counted."""
        parts = zip(torch.split(self.x, self.net.lengths), self.net.is_weight, strict=True)
        return tuple(int(part.count_nonzero()) / len(part) for part, is_weight in parts if is_weight)

    @property
    def largest(self) -> int:
        """Bytes of a payload at most."""
        return 4 * len(self.x)

    @abstractmethod
    def outgoing(self, round_: int) -> bytes:
        """Return the payload for all neighbours, after the local steps."""

    @abstractmethod
    def decode(self, payload: bytes) -> Any:
        """Read a neighbour's payload; ValueError where it cannot be one of this run."""

    @abstractmethod
    def absorb(self, received: Mapping[int, Any]) -> None:
        """Take in what the neighbours that are there said, decoded."""

    def hear_late(self, peer: int, content: Any) -> None:  # noqa: B027  # most have no use for it
        """Learn of what a neighbour said in a round that is over."""


class Alone(Method):
    """No exchange: what weights learn from a peer's own samples, for telling what the others' exchange is worth."""

    lr = 0.03
    exchanges = False

    def outgoing(self, round_: int) -> bytes:
        return b""

    def decode(self, payload: bytes) -> Any:
        raise ValueError("not-expected")

    def absorb(self, received: Mapping[int, Any]) -> None:
        pass


class Dpsgd(Method):
    """D-PSGD (Lian et al. 2017): after its local steps a peer averages its float32 model with its neighbours'.

    Written as ``x_i += pace * sum_j W_ij (said_j - said_i)`` over what has been said on the wire, which is the same for
    exact messages and keeps the network's mean where messages are rounded (Koloskova et al. 2019, CHOCO).
    """

    lr = 0.05
    pace: ClassVar[float] = 1.0
    number: ClassVar[str] = "<f4"

    def __init__(self, peer: int, run: RunConfig, topology: Topology, lr: float | None = None) -> None:
        super().__init__(peer, run, topology, lr)
        self.said = self.x.clone()
        self.heard = {other: self.x.clone() for other in self.weights}

    def outgoing(self, round_: int) -> bytes:
        payload = self.encode()
        self.said = self.update(self.said, self.decode(payload))
        return payload

    def absorb(self, received: Mapping[int, Any]) -> None:
        for peer, content in sorted(received.items()):
            self.heard[peer] = self.update(self.heard[peer], content)
            self.x += self.pace * self.weights[peer] * (self.heard[peer] - self.said)

    def hear_late(self, peer: int, content: Any) -> None:
        self.heard[peer] = self.update(self.heard[peer], content)

    def encode(self) -> bytes:
        """Write what brings the neighbours up to date."""
        with np.errstate(over="ignore"):  # a model that diverges is still a result
            return self.x.numpy().astype(self.number).tobytes()

    def decode(self, payload: bytes) -> Any:
        return _numbers(payload, len(self.x), self.number)

    def update(self, known: Tensor, content: Any) -> Tensor:
        """Return what is known of a model after its next message."""
        return torch.from_numpy(content)


class HalfDpsgd(Dpsgd):
    """D-PSGD with float16 on the wire."""

    number = "<f2"


class TopKDpsgd(Dpsgd):
    """CHOCO-SGD (Koloskova et al. 2019): the SHARE largest differences to what was said; what is left out adds up.

    Payload: uint32 indices, ascending, then float32 values.
    """

    lr = 0.05
    pace = 0.3
    incremental = True
    SHARE: ClassVar[float] = 0.01

    @property
    def _count(self) -> int:
        return max(1, int(self.SHARE * len(self.x)))

    def encode(self) -> bytes:
        change = (self.x - self.said).numpy()
        kept = np.sort(np.argpartition(np.abs(change), -self._count)[-self._count :])
        return kept.astype("<u4").tobytes() + change[kept].astype("<f4").tobytes()

    def decode(self, payload: bytes) -> Any:
        if len(payload) != 8 * self._count:
            raise ValueError("wrong-length")
        indices = np.frombuffer(payload, "<u4", self._count).astype(np.int64)
        if indices[-1] >= len(self.x) or not (np.diff(indices) > 0).all():
            raise ValueError("wrong-indices")
        return indices, _numbers(payload[4 * self._count :], self._count, "<f4")

    def update(self, known: Tensor, content: Any) -> Tensor:
        indices, values = content
        return known.index_add(0, torch.from_numpy(indices), torch.from_numpy(values))


class DisPfl(Method):
    """DisPFL (Dai et al. 2022): a personal sparse model; the average at a weight is over who keeps it.

    Each round the ``PRUNED * (1 + cos(pi t/T)) / 2`` smallest kept weights of a layer are dropped and as many grown
    where the last dense gradient is largest. Densities are the peer's of MCE-PL; biases are dense. Payload: the
    packed mask, then the float32 values of kept weights.
    """

    lr = 0.05
    PRUNED: ClassVar[float] = 0.5

    def __init__(self, peer: int, run: RunConfig, topology: Topology, lr: float | None = None) -> None:
        super().__init__(peer, run, topology, lr)
        wanted = self.device.density
        shapes = [shape for shape, masked in zip(self.net.shapes.values(), self.net.is_weight, strict=True) if masked]
        densities = iter(supermask.densities(run.experiment.algorithm.density if wanted is None else wanted, shapes))
        masks = []
        for layer, (n, masked) in enumerate(zip(self.net.lengths, self.net.is_weight, strict=True)):
            lot = torch.from_numpy(Stream(run.experiment.seed, "dispfl mask", peer, layer).uniform(n))
            masks.append(supermask.top_k(lot, next(densities) if masked else 1.0))
        self.mask = torch.cat(masks)
        self.x *= self.mask
        self._gradient = torch.zeros_like(self.x)

    @property
    def largest(self) -> int:
        return (len(self.x) + 7) // 8 + 4 * len(self.x)

    def descend(self, gradient: Tensor) -> None:
        self._gradient = gradient
        super().descend(gradient * self.mask)

    def outgoing(self, round_: int) -> bytes:
        self._prune_and_grow(self.PRUNED * (1 + cos(pi * round_ / self.run.experiment.rounds)) / 2)
        return np.packbits(self.mask.numpy()).tobytes() + self.x[self.mask].numpy().astype("<f4").tobytes()

    def _prune_and_grow(self, share: float) -> None:
        parts = (torch.split(vector, self.net.lengths) for vector in (self.mask, self.x, self._gradient))
        for mask, x, gradient in zip(*parts, strict=True):  # views: what is set here is set in self.mask
            count = int(share * int(mask.sum()))
            if count and not mask.all():
                mask[x.abs().masked_fill(~mask, torch.inf).topk(count, largest=False).indices] = False
                mask[gradient.abs().masked_fill(mask, -1.0).topk(count).indices] = True
        self.x *= self.mask
        self.velocity *= self.mask

    def decode(self, payload: bytes) -> Any:
        n = len(self.x)
        packed = (n + 7) // 8
        if len(payload) < packed:
            raise ValueError("wrong-length")
        bits = np.unpackbits(np.frombuffer(payload, np.uint8, packed))
        if bits[n:].any():
            raise ValueError("wrong-padding")
        mask = bits[:n].astype(bool)
        x = np.zeros(n, np.float32)
        x[mask] = _numbers(payload[packed:], int(mask.sum()), "<f4")
        return torch.from_numpy(mask), torch.from_numpy(x)

    def absorb(self, received: Mapping[int, Any]) -> None:
        total, count = self.x.clone(), self.mask.float()
        for _, (mask, x) in sorted(received.items()):
            total += x
            count += mask
        self.x = total / count.clamp(min=1) * self.mask


def _numbers(raw: bytes, count: int, number: str) -> NDArray[np.float32]:
    """Read ``count`` numbers; ValueError where there are more or fewer."""
    if len(raw) != count * np.dtype(number).itemsize:
        raise ValueError("wrong-length")
    return np.frombuffer(raw, number).astype(np.float32)


METHODS: Mapping[str, type[Method]] = {
    "sgd-alone": Alone,
    "dpsgd": Dpsgd,
    "dpsgd-fp16": HalfDpsgd,
    "dpsgd-topk": TopKDpsgd,
    "dispfl": DisPfl,
}
