"""A ticket: a finished personal model as a file. It holds the packed mask; the weights are made again from the seed."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dslth import files
from dslth.config import ELSEWHERE, ExperimentConfig, Inputs
from dslth.errors import MissingFileError, OutputError
from dslth.masks import BitMask

__all__ = ["Ticket", "load", "store", "with_code"]


@dataclass(frozen=True)
class Ticket:
    """What is needed to rebuild a personal model: the run's experiment (seed, model) and the mask.

    ``inputs`` are those of own data; None for a data set that dslth knows.
    """

    peer: int
    experiment: ExperimentConfig
    shapes: tuple[tuple[int, ...], ...]
    mask: BitMask
    inputs: Inputs | None = None


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
    if ticket.inputs is not None:
        metadata["inputs"] = ticket.inputs.model_dump_json()
    try:
        files.replace(path, save(tensors, metadata))
    except OSError as error:
        raise OutputError(f"cannot write the ticket {path}: {error.strerror}") from None


def with_code(experiment: ExperimentConfig, model: str | None) -> ExperimentConfig:
    """Return a ticket's experiment whose own network is made by ``model``, never by what the ticket itself names."""
    settings = experiment.model
    if not settings.own:
        return experiment
    named = model or f":{settings.name.rpartition(':')[2]}"
    return experiment.model_copy(update={"model": settings.model_copy(update={"name": named})})


def load(path: Path, model: str | None = None) -> Ticket:
    """Read a ticket; ``model`` names the code of an own network.

    Raises MissingFileError if it does not exist or is not whole.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            shapes = tuple(tuple(shape) for shape in json.loads(metadata["shapes"]))
            packed = b"".join(file.get_tensor(f"layer.{number}").tobytes() for number in range(len(shapes)))
        mask = BitMask.unpack(packed, [int(np.prod(shape)) for shape in shapes])
        if mask.digest != metadata["digest"]:
            raise ValueError("its mask does not match its digest")
        experiment = with_code(ExperimentConfig.model_validate_json(metadata["experiment"], context=ELSEWHERE), model)
        inputs = Inputs.model_validate_json(metadata["inputs"]) if experiment.data.own else None
        return Ticket(int(metadata["peer"]), experiment, shapes, mask, inputs)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise MissingFileError(f"no ticket in {path}: {error}") from None
