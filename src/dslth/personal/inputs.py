"""What a ticket is tried or taught on: data sets, image files, and CSV files, as bytes of its network's input shape."""

import csv
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf, prod
from pathlib import Path

import numpy as np

from dslth.config import DataConfig, Inputs
from dslth.errors import ConfigError, DataError, MissingFileError
from dslth.learning import data
from dslth.learning.dataset import Dataset, Images, Values, raw, standardised
from dslth.learning.images import read_images
from dslth.runs.tickets import Ticket

__all__ = [
    "chosen",
    "inputs_by_name",
    "inputs_of",
    "read_csv",
    "read_dataset",
    "read_files",
    "read_labelled",
]

MOST_CSV = 1 << 30
"""Bytes of a CSV file."""
NUMBERS = {"uint8": "byte", "float32": "feature", "int64": "token"}
LARGEST = {"uint8": 255, "int64": 2**31 - 1}


def inputs_of(ticket: Ticket) -> Inputs:
    """Return what a ticket's network is shown, and what it tells apart."""
    return ticket.inputs or inputs_by_name(ticket.experiment.data, ticket.shapes[-1][0])


def inputs_by_name(settings: DataConfig, classes: int) -> Inputs:
    """Return what networks for a data set that dslth knows are shown."""
    return Inputs(shape=data.DATASETS[settings.name].shape, number="uint8", classes=classes)


def read_dataset(ticket: Ticket, folder: Path | None) -> Dataset:
    """Read a ticket's data set; from ``folder`` if one is given, unless they are own data.

    Own features come standardised as the ticket's. Raises MissingFileError or DataError.
    """
    settings, inputs = ticket.experiment.data, inputs_of(ticket)
    if settings.own:
        own = data.load(settings.of(ticket.peer))
        if str(own.inputs) != str(inputs):
            raise DataError(f"{settings.of(ticket.peer).place}: {own.inputs}; the ticket is for {inputs}")
        train, test = (
            standardised(raw(part, own.mean, own.deviation), inputs.mean, inputs.deviation)
            for part in (own.train_images, own.test_images)
        )
        return replace(own, train_images=train, test_images=test)
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
    return replace(
        dataset,
        train_images=dataset.train_images[train], train_labels=dataset.train_labels[train],
        test_images=dataset.test_images[test], test_labels=dataset.test_labels[test],
    )  # fmt: skip


def read_labelled(path: Path, inputs: Inputs) -> Dataset:
    """Read a CSV file of samples and, in the last column, their labels; every fifth row is for testing.

    Raises DataError.
    """
    rows = _rows(path, prod(inputs.shape) + 1, f"a column for each {NUMBERS[inputs.number]} of a sample, and the label")
    samples = _samples(path, {number: row[:-1] for number, row in rows.items()}, inputs)
    labels = np.array([_label(path, row[-1], inputs) for row in rows.values()], np.int64)
    test = np.arange(len(rows)) % 5 == 4
    if not test.any():
        raise DataError(f"{path}: {len(rows)} rows; every fifth is for testing, so there must be 5 at least")
    parts = samples[~test], labels[~test], samples[test], labels[test]
    return Dataset(*parts, inputs.classes, names=inputs.names)


def read_csv(path: Path, inputs: Inputs) -> Values:
    """Read a CSV file of samples, a row each, a column for each of its numbers; raises DataError."""
    rows = _rows(path, prod(inputs.shape), f"a column for each {NUMBERS[inputs.number]} of a sample")
    return _samples(path, rows, inputs)


def read_files(paths: Sequence[Path], inputs: Inputs) -> Images:
    """Read image files for a network of bytes; raises DataError, or DslthError without Pillow."""
    if inputs.number != "uint8":
        raise DataError(f"{paths[0]}: this ticket is shown {inputs}, not images; give a CSV file of them")
    return read_images(paths, inputs.shape)


def _rows(path: Path, columns: int, what: str) -> dict[int, list[str]]:
    """Return rows of so many cells, by row number; a first row without a number is a header."""
    rows: dict[int, list[str]] = {}
    try:
        if path.stat().st_size > MOST_CSV:
            raise DataError(f"{path}: larger than {MOST_CSV >> 20} MiB")
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if number == 1 and not any(map(_is_number, row)):
                    continue
                if len(row) != columns:
                    raise DataError(f"{path}, row {number}: {len(row)} columns; expected {columns}: {what}")
                rows[number] = row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not rows:
        raise DataError(f"{path}: no rows of numbers")
    return rows


def _is_number(cell: str) -> bool:
    with suppress(ValueError):
        return bool(float(cell)) or True
    return False


def _samples(path: Path, rows: Mapping[int, Sequence[str]], inputs: Inputs) -> Values:
    of, (least, most) = (float, (-inf, inf)) if inputs.number == "float32" else (int, (0, LARGEST[inputs.number]))
    values = []
    for number, row in rows.items():
        try:
            read = [of(cell) for cell in row]
        except ValueError:
            expected = "numbers" if of is float else "whole numbers"
            raise DataError(f"{path}, row {number}: expected {expected}") from None
        if not all(least <= value <= most for value in read):  # no NaN is
            raise DataError(f"{path}, row {number}: expected {NUMBERS[inputs.number]}s from {least} to {most}")
        values.append(read)
    samples = np.array(values, inputs.number).reshape(-1, *inputs.shape)
    return standardised(samples, inputs.mean, inputs.deviation)


def _label(path: Path, cell: str, inputs: Inputs) -> int:
    if cell in inputs.names:
        return inputs.names.index(cell)
    if inputs.names or not cell.isdigit() or int(cell) >= inputs.classes:
        known = ", ".join(inputs.names) or f"0 to {inputs.classes - 1}"
        raise DataError(f"{path}: label {cell[:40]}; the ticket's network knows {known}")
    return int(cell)
