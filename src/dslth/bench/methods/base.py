"""What all compared methods have: the network as one flat vector, its local steps, its evaluation."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import astuple
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dslth.bench.codings import Layout, Sent, WholeCoding
from dslth.config import ExperimentConfig, Init, Inputs
from dslth.engines.base import PeerJob
from dslth.errors import ConfigError
from dslth.learner import Samples, threads
from dslth.learning import networks, supermask
from dslth.runs.events import Accuracies
from dslth.runs.folder import RunFolder

__all__ = ["RATES", "Net", "Sgd", "State", "before_exchange", "turn"]

RATES = (0.01, 0.03, 0.05, 0.1)
"""Learning rates that ``--tune`` tries for every method."""
MOMENTUM = 0.9
"""Without it D-PSGD ends at .927 on digits, ring of ten, 20 rounds, at its best rate; with it at .984."""

S = TypeVar("S", bound=Sent)
State = Mapping[str, NDArray[np.generic]]


def turn(number: int, share: float) -> bool:
    """Return whether the run's step ``number`` is one of those that make up a share of all, evenly spread."""
    return int((number + 1) * share) > int(number * share)


def before_exchange(folder: RunFolder, peer: int) -> Path:
    """Return the file of a peer's accuracies before each exchange: JSON lines [round, personal, global]."""
    return folder.path / "peers" / f"before-{peer}.jsonl"


class Net:
    """The run's network as a function of all its parameters in one flat float32 vector.

    Signed weights, see ``supermask.freeze``, have the size that suits a mask that keeps half of them.
    """

    def __init__(self, experiment: ExperimentConfig, inputs: Inputs, init: Init) -> None:
        self._module = networks.network(experiment, inputs)
        frozen = supermask.freeze(self._module, experiment.seed, init, 0.5)
        parameters = dict(self._module.named_parameters())
        self.masked_sizes = frozen.sizes
        self.shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        lengths = tuple(parameter.numel() for parameter in parameters.values())
        self.layout = Layout(lengths, tuple(name in frozen.names for name in parameters))
        self.first = torch.cat([parameter.flatten() for parameter in parameters.values()])

    def __call__(self, x: Tensor, images: Tensor) -> Tensor:
        parts = zip(self.shapes.items(), torch.split(x, list(self.layout.lengths)), strict=True)
        parameters = {name: part.view(shape) for (name, shape), part in parts}
        logits: Tensor = torch.func.functional_call(self._module, parameters, (images,))
        return logits


class Sgd(ABC, Generic[S]):
    """What one peer learns and sends, see ``peer.Method``. ``x`` is its model, flat; ``weights`` those of neighbours.

    The weights are Metropolis-Hastings: ``1 / (1 + max(degree_i, degree_j))``, the rest is the peer's own. ``grid`` has
    the method's values to tune by name, and those to try; what stands in the class is used unless ``values`` differ.
    """

    name: ClassVar[str]
    lr: float
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"lr": RATES}
    init: ClassVar[Init] = Init.DEFAULT
    needs: ClassVar[str | None] = None
    """A library that is installed with ``dslth[bench]`` only."""
    coding: WholeCoding[S]

    def __init__(self, job: PeerJob, values: Mapping[str, float] = MappingProxyType({})) -> None:
        for value in self.grid:
            setattr(self, value, values.get(value, getattr(self, value)))
        self._experiment, self._device = job.run.experiment, job.run.device(job.peer)
        if self._device.device != "cpu":
            raise ConfigError(f"device {self._device.device}: the methods that are compared compute on cpu only")
        self._samples = Samples(job.peer, job.topology.peers, self._experiment, self._device)
        self.net = Net(self._experiment, self._samples.inputs, self.init)
        self.x, self.velocity = self.net.first.clone(), torch.zeros_like(self.net.first)
        degrees = {other: len(job.topology.neighbours(other)) for other in job.topology.neighbours(job.peer)}
        own = len(degrees)
        self.weights = {other: 1 / (1 + max(own, degree)) for other, degree in degrees.items()}
        self._before, self._round, self._learned = before_exchange(job.folder, job.peer), 0, self.x

    @classmethod
    def values(cls) -> dict[str, float]:
        """Return the values to tune as they stand in the class."""
        return {value: getattr(cls, value) for value in cls.grid}

    @property
    def settings(self) -> dict[str, str]:
        """What peers must share to understand each other, besides the run's settings."""
        return {"method": self.name} | {f"method.{value}": str(getattr(self, value)) for value in self.grid}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of weights of each layer."""
        return self.net.masked_sizes

    @property
    def ones(self) -> tuple[int, ...]:
        """Number of weights of each layer that are kept: all."""
        return self.sizes

    @property
    def training_samples(self) -> int:
        """Number of samples that this peer learns from."""
        return len(self._samples)

    @property
    def evaluate_every(self) -> int:
        """Number of rounds from one evaluation to the next."""
        return self._samples.evaluate_every

    def local_update(self, round_: int) -> tuple[S, float]:
        """Take the round's local steps, on the same batches as MCE-PL; return what to send and the mean loss."""
        steps = self._experiment.algorithm.local_steps
        with threads(self._device.threads):
            losses = [self._step(round_ * steps + step, *self._samples.batch(round_, step)) for step in range(steps)]
            self._round, self._learned = round_, self._personal()
            return self._say(round_), float(np.mean(losses))

    def _step(self, number: int, images: Tensor, labels: Tensor) -> float:
        """Take the run's step ``number``; return the loss."""
        loss, gradient = self._backward(self.x, images, labels)
        self._descend(gradient)
        return loss

    def _backward(self, x: Tensor, images: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        """Return the loss of a model, and its gradient."""
        x = x.clone().requires_grad_()
        loss = F.cross_entropy(self.net(x, images), labels)
        return loss.item(), torch.autograd.grad(loss, x)[0]

    def _descend(self, gradient: Tensor) -> None:
        """Take one step of SGD with momentum."""
        self.velocity = MOMENTUM * self.velocity + gradient
        self.x = self.x - self.lr * self.velocity

    def _personal(self) -> Tensor:
        """Return the parameters that the peer classifies with."""
        return self.x

    def fine_tune(self, received: Mapping[int, S]) -> None:
        """Use the messages that came from neighbours."""
        with threads(self._device.threads):
            self._mix(received)

    def evaluation(self) -> Callable[[], Accuracies]:
        """Return what classifies both test sets with the model, and writes down the accuracies before the exchange."""
        x, learned, round_ = self._personal(), self._learned, self._round

        def evaluate() -> Accuracies:
            with threads(self._device.threads):
                with self._before.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([round_, *astuple(self._accuracies(learned))]) + "\n")
                return self._accuracies(x)

        return evaluate

    def _accuracies(self, x: Tensor) -> Accuracies:
        return self._samples.accuracies(lambda images: self.net(x, images))

    def state(self) -> State:
        """Return what was learned between two rounds, as flat float32 vectors."""
        return {"x": self.x.numpy(), "velocity": self.velocity.numpy()}

    def restore(self, state: State) -> None:
        """Take up a state; raises KeyError if it is not one of this method."""
        self.x, self.velocity = torch.from_numpy(state["x"]), torch.from_numpy(state["velocity"])

    def result(self) -> tuple[S, None]:
        """Return the model as a message, and no ticket, which only masks have."""
        return self._message(), None

    @abstractmethod
    def _message(self) -> S:
        """Return the current model as a message."""

    @abstractmethod
    def _say(self, round_: int) -> S:
        """Return what to send, after the local steps."""

    @abstractmethod
    def _mix(self, received: Mapping[int, S]) -> None:
        """Mix the model with the messages that came from neighbours."""
