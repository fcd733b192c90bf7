"""A data set that processes of one machine share: read once, and held in memory once."""

import mmap
import os
from dataclasses import fields
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

from dslth.learning.dataset import Dataset

__all__ = ["Shared"]

ALIGNED = 64


class Shared:
    """A data set in memory without a name, free again once nobody has it; raises OSError if there is not enough.

    It can be given to a process that multiprocessing starts, and only to one: what travels is a descriptor.
    """

    def __init__(self, dataset: Dataset) -> None:
        arrays = dataset.arrays()
        self._rest = {name: value for name, value in _items(dataset) if name not in arrays}
        self._places = {}
        size = 0
        for name, array in arrays.items():
            self._places[name] = size, array.dtype.str, array.shape
            size += -(-array.nbytes // ALIGNED) * ALIGNED
        self._fd = os.memfd_create("dslth-data")
        os.posix_fallocate(self._fd, 0, size)  # an error now, not a signal at the first access
        with mmap.mmap(self._fd, size) as memory:
            for name, array in arrays.items():
                _view(memory, *self._places[name])[:] = array

    def __del__(self) -> None:
        os.close(self._fd)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self._fd), self._places, self._rest)

    def dataset(self) -> Dataset:
        """Return the data set; its arrays are read-only."""
        memory = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)
        return Dataset(**{name: _view(memory, *place) for name, place in self._places.items()}, **self._rest)


def _items(dataset: Dataset) -> list[tuple[str, Any]]:
    return [(field.name, getattr(dataset, field.name)) for field in fields(dataset)]


def _view(memory: mmap.mmap, offset: int, dtype: str, shape: tuple[int, ...]) -> Any:
    return np.ndarray(shape, dtype, memory, offset)


def _received(duplicate: Any, places: dict[str, Any], rest: dict[str, Any]) -> Shared:
    shared = Shared.__new__(Shared)
    shared._fd, shared._places, shared._rest = duplicate.detach(), places, rest
    return shared
