"""A ticket: a finished personal model as a file. It holds the packed mask; the weights are made again from the seed."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dslth import files
from dslth.config import ExperimentConfig
from dslth.errors import MissingFileError, OutputError
from dslth.masks import BitMask

__all__ = ["Ticket", "load", "store"]


@dataclass(frozen=True)
class Ticket:
    """What is needed to rebuild a personal model: the run's experiment (seed, model) and the mask."""

    peer: int
    experiment: ExperimentConfig
    shapes: tuple[tuple[int, ...], ...]
    mask: BitMask


def store(ticket: Ticket, path: Path) -> None:
    """Write a ticket atomically as safetensors: one packed uint8 tensor per layer, everything else as metadata."""
    tensors = {
        f"layer.{number}": np.frombuffer(layer.tobytes(), np.uint8) for number, layer in enumerate(ticket.mask.layers)
    }
    metadata = {
        "peer": str(ticket.peer),
        "seed": str(ticket.experiment.seed),
        "model": ticket.experiment.model.name,
        "experiment": ticket.experiment.model_dump_json(),
        "shapes": json.dumps(ticket.shapes),
        "digest": ticket.mask.digest,
    }
    try:
        files.replace(path, save(tensors, metadata))
    except OSError as error:
        raise OutputError(f"cannot write the ticket {path}: {error.strerror}") from None


def load(path: Path) -> Ticket:
    """Read a ticket; raises MissingFileError if it does not exist or is not whole."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            shapes = tuple(tuple(shape) for shape in json.loads(metadata["shapes"]))
            packed = b"".join(file.get_tensor(f"layer.{number}").tobytes() for number in range(len(shapes)))
        mask = BitMask.unpack(packed, [int(np.prod(shape)) for shape in shapes])
        if mask.digest != metadata["digest"]:
            raise ValueError("its mask does not match its digest")
        experiment = ExperimentConfig.model_validate_json(metadata["experiment"])
        return Ticket(int(metadata["peer"]), experiment, shapes, mask)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise MissingFileError(f"no ticket in {path}: {error}") from None
