"""Tickets for other programs: a plain state dict, and an ONNX model that is compared with the ticket."""

import importlib.util
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from dslth import files
from dslth.config import Inputs
from dslth.errors import DataError, DslthError, OutputError
from dslth.learning.dataset import Values, raw
from dslth.personal import inputs, nets, smaller
from dslth.runs.tickets import Ticket
from dslth.seeds import Stream

__all__ = [
    "OPSET",
    "UNCHECKED",
    "Check",
    "Shrinking",
    "check_onnx",
    "compare",
    "shrink",
    "store_dense",
    "store_onnx",
    "test_images",
]

OPSET = 17
UNCHECKED = "not checked: onnxruntime is missing; pip install 'dslth[onnx]'"
TOKENS = {"uint8": 256, "int64": 2}
"""How many numbers made-up samples choose from: an own embedding has two tokens at least."""
MOST_IMAGES = 1000
"""Images to compare with."""


def store_dense(ticket: Ticket, path: Path) -> int:
    """Write the state dict of a plain dense network as safetensors, masked weights as zeros; return its bytes.

    Names are those of the torch module; the metadata says how images are normalised. Raises OutputError.
    """
    metadata = {
        "format": "pt",
        "model": ticket.experiment.model.model_dump_json(),
        "input": _told(inputs.inputs_of(ticket)),
    }
    state = {name: tensor.contiguous() for name, tensor in nets.dense(ticket).state_dict().items()}
    return _written(path, safetensors.torch.save(state, metadata))


def store_onnx(net: nn.Module, given: Inputs, path: Path) -> int:
    """Write an ONNX model of a network for normalised samples; return its bytes.

    Its input ``images`` is (n, ...) of uint8, float32 or int64, its output ``logits`` float32 (n, classes): the
    normalisation is part of the model. Raises OutputError, or DslthError without onnx.
    """
    if importlib.util.find_spec("onnx") is None:
        raise DslthError("an ONNX model takes the package onnx: pip install 'dslth[onnx]'")
    example = torch.from_numpy(np.zeros((1, *given.shape), given.number))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            nets.Classifier(net, given).eval(),
            (example,),
            Path(folder) / "net.onnx",
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}},
            opset_version=OPSET,
            dynamo=False,  # the newer exporter needs onnxscript, and takes many times as long
        )
        return _written(path, (Path(folder) / "net.onnx").read_bytes())


@dataclass(frozen=True)
class Check:
    """How another form of a network agrees with it: images tried, predictions alike, largest difference of a logit."""

    by: str
    images: int
    same: int
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.by}: {self.same:,} of {self.images:,} predictions are the same; "
            f"logits differ by {self.difference:.1e} at most"
        )


def check_onnx(net: nn.Module, given: Inputs, path: Path, images: Values) -> Check | None:
    """Classify samples of a data set with a network and with its ONNX model; None if onnxruntime is missing."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    people_have = raw(images, given.mean, given.deviation)
    theirs = np.concatenate([session.run(None, {"images": some})[0] for some in nets.pieces(people_have)])
    return compare(f"onnxruntime {onnxruntime.__version__}", nets.logits(net, images), theirs)


@dataclass(frozen=True)
class Shrinking:
    """What the removal of dead filters does: weights and biases, milliseconds for an image, before and after."""

    parameters: tuple[int, int]
    milliseconds: tuple[float, float]
    check: Check

    def __str__(self) -> str:
        (more, fewer), (slow, fast) = self.parameters, self.milliseconds
        return (
            f"weights and biases {more:,}, now {fewer:,}; one image {slow:.2f} ms, now {fast:.2f} ms, on one thread; "
            f"{self.check}"
        )


def shrink(net: nn.Module, images: Values) -> tuple[nn.Module, Shrinking]:
    """Return a network without its dead filters, and how it compares on images; raises ConfigError if none is dead."""
    small = smaller.without_dead_filters(net)
    slow, fast = smaller.milliseconds([net, small], images.shape[1:])
    check = compare("the smaller net", nets.logits(net, images), nets.logits(small, images))
    return small, Shrinking((smaller.count(net), smaller.count(small)), (slow, fast), check)


def compare(by: str, ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> Check:
    """Compare logits (n, classes)."""
    same = int((ours.argmax(1) == theirs.argmax(1)).sum())
    return Check(by, len(ours), same, float(np.abs(ours - theirs).max()))


def test_images(ticket: Ticket, folder: Path | None) -> Values:
    """Return up to 1,000 test samples of a ticket's data set; random ones where it is missing."""
    try:
        return inputs.read_dataset(ticket, folder).test_images[:MOST_IMAGES]
    except DataError:
        given = inputs.inputs_of(ticket)
        uniform = Stream(ticket.experiment.seed, "made up").uniform(MOST_IMAGES, *given.shape)
        return uniform if given.number == "float32" else (TOKENS[given.number] * uniform).astype(given.number)


def _told(given: Inputs) -> str:
    """Say what the network takes."""
    what = f"{'float32' if given.number == 'uint8' else given.number} (n, {', '.join(map(str, given.shape))})"
    if given.mean:
        return f"{what}: (feature - mean) / deviation, mean {given.mean}, deviation {given.deviation}"
    return f"{what}: bytes / 127.5 - 1" if given.number == "uint8" else f"{what}: tokens"


def _written(path: Path, content: bytes) -> int:
    try:
        files.replace(path, content)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    return len(content)
