"""A data set in memory, whichever it is and wherever it comes from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dslth.config import Inputs

__all__ = ["CLASSES", "Dataset", "Images", "Labels", "Values", "raw", "standardised"]

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Values = NDArray[Any]
"""What a network is shown: bytes (uint8), features (float32) or tokens (int64); (n, ...)."""

CLASSES = 10
"""Of every data set that dslth knows by name."""


@dataclass(frozen=True)
class Dataset:
    """Training and test samples (n, ...), such as images (n, channels, height, width); labels int64 in 0 .. classes-1.

    Bytes go into a network as floats in [-1, 1]; features are standardised already, by ``mean`` and ``deviation`` of
    each feature; tokens stay as they are. ``names`` are those of the classes, if they have any. ``clients`` say whose
    each training or test sample is, as a number, if the data say so; ``digest`` is that of own data. ``note`` tells the
    user what part of the data set is missing, if any.
    """

    train_images: Values
    train_labels: Labels
    test_images: Values
    test_labels: Labels
    classes: int = CLASSES
    note: str = ""
    names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    train_clients: Labels | None = None
    test_clients: Labels | None = None
    digest: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, such as (channels, height, width)."""
        return self.train_images.shape[1:]

    @property
    def inputs(self) -> Inputs:
        """What a network for these data is shown, and what it tells apart."""
        return Inputs(
            shape=self.shape,
            number=str(self.train_images.dtype),  # type: ignore[arg-type]  # checked by it
            classes=self.classes,
            names=self.names,
            mean=self.mean,
            deviation=self.deviation,
        )

    def with_digest(self) -> "Dataset":
        """Return the same data with their digest: that is the same wherever the same data are read."""
        digest = hashlib.sha256(repr((self.classes, self.names, self.mean, self.deviation)).encode())
        for name, array in self.arrays().items():
            digest.update(repr((name, array.shape, array.dtype.str)).encode())
            digest.update(np.ascontiguousarray(array).data)
        return replace(self, digest=digest.hexdigest())

    def arrays(self) -> dict[str, Values]:
        """Return the fields that are arrays, by name."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if isinstance(value, np.ndarray)}


def standardised(samples: Values, mean: Sequence[float], deviation: Sequence[float]) -> Values:
    """Return samples (n, features, ...) less the mean of each feature, by its deviation; as they are without a mean."""
    if not mean:
        return samples
    return np.asarray((samples - _beside(mean, samples)) / _beside(deviation, samples), np.float32)


def raw(samples: Values, mean: Sequence[float], deviation: Sequence[float]) -> Values:
    """Undo ``standardised``."""
    if not mean:
        return samples
    return np.asarray(samples * _beside(deviation, samples) + _beside(mean, samples), np.float32)


def _beside(figures: Sequence[float], samples: Values) -> NDArray[np.float64]:
    """Return a figure for each feature in the shape that goes with samples."""
    return np.reshape(np.array(figures), (-1, *[1] * (samples.ndim - 2)))
