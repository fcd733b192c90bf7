"""What a ticket is, and how well it classifies, as figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dslth.config import DeviceConfig
from dslth.learner import Samples
from dslth.learning.dataset import Labels, Values
from dslth.personal import compact, inputs, nets
from dslth.runs.tickets import Ticket

__all__ = [
    "ClassAccuracy",
    "Evaluation",
    "Layer",
    "Prediction",
    "evaluate",
    "layers",
    "own_accuracy",
    "predictions",
    "sizes",
]


@dataclass(frozen=True)
class Layer:
    """A masked layer: how many of its weights and filters (convolution output channels, linear rows) are kept."""

    name: str
    shape: tuple[int, ...]
    kept: int
    filters_kept: int

    @property
    def weights(self) -> int:
        """Number of weights, kept or not."""
        return prod(self.shape)

    @property
    def density(self) -> float:
        """Share of weights that are kept."""
        return self.kept / self.weights

    def record(self) -> dict[str, Any]:
        """Return the figures for programs."""
        return {
            "name": self.name,
            "shape": self.shape,
            "weights": self.weights,
            "kept": self.kept,
            "density": self.density,
            "filters": self.shape[0],
            "filters_kept": self.filters_kept,
        }


def layers(ticket: Ticket) -> list[Layer]:
    """Count what a ticket keeps; raises MissingFileError if its layers are not those of its network."""
    masks = zip(nets.net_of(ticket).names, ticket.shapes, ticket.mask.arrays(), strict=True)
    return [
        Layer(
            name.removesuffix(".weight"),
            shape,
            int(np.count_nonzero(mask)),
            int(np.count_nonzero(mask.reshape(shape[0], -1).any(1))),
        )
        for name, shape, mask in masks
    ]


def sizes(ticket: Ticket) -> dict[str, int]:
    """Return the bytes of a ticket in each form: packed mask, compact file, dense float32."""
    return {
        "packed": len(ticket.mask.pack()),
        "compact": len(compact.pack(ticket)),
        "dense": 4 * sum(ticket.mask.sizes),
    }


@dataclass(frozen=True)
class ClassAccuracy:
    """How many test images of a class there are, and how many of them are classified rightly."""

    label: int
    images: int
    right: int


@dataclass(frozen=True)
class Evaluation:
    """The accuracy on a test set, class by class."""

    classes: tuple[ClassAccuracy, ...]

    @property
    def images(self) -> int:
        """Number of test images."""
        return sum(c.images for c in self.classes)

    @property
    def accuracy(self) -> float:
        """Share of the test images that are classified rightly."""
        return sum(c.right for c in self.classes) / self.images

    def record(self) -> dict[str, Any]:
        """Return the figures for programs."""
        by_class = [{"class": c.label, "images": c.images, "accuracy": c.right / c.images} for c in self.classes]
        return {"images": self.images, "accuracy": self.accuracy, "classes": by_class}


def evaluate(net: nn.Module, images: Values, labels: Labels) -> Evaluation:
    """Classify a test set with a network for normalised images; images (n, c, h, w), labels (n,), one at least."""
    right = nets.logits(net, images).argmax(1) == labels
    found = [(int(c), labels == c) for c in np.unique(labels)]
    return Evaluation(tuple(ClassAccuracy(c, int(mine.sum()), int(right[mine].sum())) for c, mine in found))


def own_accuracy(ticket: Ticket, net: nn.Module, peers: int, folder: Path | None = None) -> float:
    """Return the accuracy on the peer's own test set, as in the reports of its run of so many peers.

    ``folder`` is that of the data sets, in place of the run's. Raises DataError.
    """
    where = {"folder": str(folder)} if folder else {}
    data = ticket.experiment.data.model_copy(update=where)
    experiment = ticket.experiment.model_copy(update={"data": data})
    return Samples(ticket.peer, peers, experiment, DeviceConfig()).accuracies(net).personal


@dataclass(frozen=True)
class Prediction:
    """What a sample is taken for, and the probability that the network gives it; ``word`` is the class's name."""

    name: str
    label: int
    probability: float
    word: str = ""

    def record(self) -> dict[str, Any]:
        """Return the figures for programs."""
        figures = {"image": self.name, "class": self.label, "probability": round(self.probability, 6)}
        return figures | ({"class_name": self.word} if self.word else {})


def predictions(ticket: Ticket, files: Sequence[Path]) -> list[Prediction]:
    """Classify image files, and the images of CSV files, row by row; raises DataError, DslthError without Pillow."""
    net, given, found = nets.dense(ticket), inputs.inputs_of(ticket), list[Prediction]()
    for file in files:
        rows = file.suffix.lower() == ".csv"
        images = inputs.read_csv(file, given) if rows else inputs.read_files([file], given)
        logits = nets.logits(net, images).astype(np.float64)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        for row, share in enumerate(shares, 1):
            label = int(share.argmax())
            word = given.names[label] if given.names else ""
            found.append(Prediction(f"{file}:{row}" if rows else str(file), label, float(share[label]), word))
    return found
