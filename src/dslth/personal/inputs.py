"""What a ticket is tried or taught on: data sets, image files, and CSV files, as bytes of its network's input shape."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dslth.config import DataConfig
from dslth.errors import ConfigError, DataError, DslthError, MissingFileError
from dslth.learning import data
from dslth.learning.data import Dataset
from dslth.run.tickets import Ticket

__all__ = ["chosen", "read_csv", "read_dataset", "read_images", "read_labelled", "shape_of"]

MOST_CSV = 1 << 30
"""Bytes of a CSV file."""
Shape = tuple[int, int, int]


def shape_of(ticket: Ticket) -> Shape:
    """Return the shape of the images that a ticket classifies: channels, height, width."""
    return data.DATASETS[ticket.experiment.data.name].shape


def read_dataset(settings: DataConfig, folder: Path | None) -> Dataset:
    """Read a ticket's own data set, from ``folder`` if one is given; raises MissingFileError or DataError."""
    if folder and not os.path.isdir(folder):
        raise MissingFileError(f"--data-dir {folder}: no such folder")
    return data.load(settings.model_copy(update={"folder": str(folder)} if folder else {}))


def chosen(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """Return the samples of some classes; all if none is named.

    Raises ConfigError for a class that there is not, DataError if no test image is left.
    """
    if not classes:
        return dataset
    if wrong := [c for c in classes if not 0 <= c < dataset.classes]:
        raise ConfigError(f"--classes: there is no class {wrong[0]}; there are 0 to {dataset.classes - 1}")
    if not np.isin(dataset.test_labels, classes).any():
        raise DataError(f"--classes: there is no test image of {', '.join(map(str, classes))}")
    train, test = (np.isin(labels, classes) for labels in (dataset.train_labels, dataset.test_labels))
    return Dataset(
        dataset.train_images[train], dataset.train_labels[train],
        dataset.test_images[test], dataset.test_labels[test], dataset.classes,
    )  # fmt: skip


def read_labelled(path: Path, shape: Shape, classes: int) -> Dataset:
    """Read a CSV file of images and, in the last column, their labels; every fifth row is for testing.

    Raises DataError.
    """
    table = _table(path, np.prod(shape, dtype=int) + 1, "a column for each byte of an image, and the label")
    labels = table[:, -1]
    if labels.max() >= classes:
        raise DataError(f"{path}: label {labels.max()}; the ticket's network knows 0 to {classes - 1}")
    images, test = _bytes(path, table[:, :-1], shape), np.arange(len(table)) % 5 == 4
    if not test.any():
        raise DataError(f"{path}: {len(table)} rows; every fifth is for testing, so there must be 5 at least")
    return Dataset(images[~test], labels[~test], images[test], labels[test], classes)


def read_csv(path: Path, shape: Shape) -> NDArray[np.uint8]:
    """Read a CSV file of images, a row each, a column for each byte; raises DataError."""
    return _bytes(path, _table(path, int(np.prod(shape)), "a column for each byte of an image"), shape)


def read_images(paths: Sequence[Path], shape: Shape) -> NDArray[np.uint8]:
    """Read image files, grey or in colours as the network takes them, and scale them to its size.

    Raises DataError, or DslthError without Pillow.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DslthError("to read image files takes Pillow: pip install 'dslth[images]'") from None
    channels, height, width = shape
    read = []
    for path in paths:
        try:
            with Image.open(path) as image:
                scaled = image.convert("L" if channels == 1 else "RGB").resize((width, height))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            reason = getattr(error, "strerror", None) or "not an image in a format that Pillow knows"
            raise DataError(f"{path}: {reason}") from None
        read.append(np.asarray(scaled, np.uint8).reshape(height, width, channels).transpose(2, 0, 1))
    return np.stack(read)


def _table(path: Path, columns: int, what: str) -> NDArray[np.int64]:
    """Read rows of whole numbers; a first row of words is a header."""
    rows: list[list[int]] = []
    try:
        if path.stat().st_size > MOST_CSV:
            raise DataError(f"{path}: larger than {MOST_CSV >> 20} MiB")
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), 1):
                try:
                    values = [int(cell) for cell in row]
                except ValueError:
                    if number == 1:
                        continue
                    raise DataError(f"{path}, row {number}: expected whole numbers") from None
                if len(values) != columns:
                    raise DataError(f"{path}, row {number}: {len(values)} columns; expected {columns}: {what}")
                if not all(0 <= value < 1 << 31 for value in values):
                    raise DataError(f"{path}, row {number}: a number is negative, or far too large")
                rows.append(values)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not rows:
        raise DataError(f"{path}: no rows of numbers")
    return np.array(rows, np.int64)


def _bytes(path: Path, table: NDArray[np.int64], shape: Shape) -> NDArray[np.uint8]:
    if table.max() > 255:
        raise DataError(f"{path}: an image has a byte {table.max()}; expected 0 to 255")
    return table.astype(np.uint8).reshape(-1, *shape)
