"""Checkpoints of a peer: what it needs to resume, as safetensors; no pickle.

A checkpoint is written beside the last one, synced to disk and renamed into place, so that there is a whole one at any
moment. The last two are kept: if the newer cannot be read, the older is used.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from dslth import files
from dslth.errors import CheckpointError

__all__ = ["Checkpoint", "Checkpoints"]

VERSION = 1
KEPT = 2
"""Checkpoints of a peer that are kept."""


class Packed(Protocol):
    """What is kept in its packed form."""

    def pack(self) -> bytes:
        """Return the packed form."""


M = TypeVar("M", bound=Packed)


@dataclass(frozen=True)
class Checkpoint(Generic[M]):
    """A peer between two rounds.

    ``run`` is the run digest in hex, ``round`` the next one to play, ``tensors`` the method's state, ``sent`` the
    messages sent last with their rounds (neighbours may still need them), ``refused`` the refusals counted so far.
    """

    run: str
    round: int
    tensors: Mapping[str, NDArray[np.generic]]
    sent: Sequence[tuple[int, M]]
    refused: Mapping[str, int]


class Checkpoints:
    """The checkpoints of one peer, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> list[Path]:
        """Return the checkpoints that are there, newest first."""
        return sorted((path for path in self.folder.glob("round-*.safetensors") if path.is_file()), reverse=True)

    def save(self, checkpoint: Checkpoint[M]) -> None:
        """Write a checkpoint and remove all but the last two; raises OSError if it cannot be written."""
        tensors: dict[str, NDArray[np.generic]] = dict(checkpoint.tensors)
        for round_, message in checkpoint.sent:
            tensors[f"sent.{round_}"] = np.frombuffer(message.pack(), np.uint8)
        metadata = {
            "version": str(VERSION),
            "run": checkpoint.run,
            "round": str(checkpoint.round),
            "refused": json.dumps(checkpoint.refused),
        }
        metadata["digest"] = _digest(metadata, tensors)
        files.replace(self.folder / f"round-{checkpoint.round:08d}.safetensors", to_bytes(tensors, metadata))
        for old in [*self.files()[KEPT:], *self._unfinished()]:
            old.unlink()

    def _unfinished(self) -> list[Path]:
        """Return the remains of checkpoints that were being written when the process was killed."""
        return list(self.folder.glob(".round-*"))

    def load(self, run: str, unpack: Callable[[bytes], M]) -> tuple[Checkpoint[M] | None, list[str]]:
        """Read the newest whole checkpoint; return it, None if there are none, and a note for each damaged one.

        ``unpack`` reads a message's packed form, and raises ValueError if it is not one. Raises CheckpointError if the
        checkpoint belongs to another run, or if none can be read.
        """
        notes: list[str] = []
        for path in self.files():
            try:
                return _read(path, run, unpack), notes
            except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
                notes.append(f"{path} cannot be read ({str(error) or type(error).__name__})")
        if notes:
            raise CheckpointError(f"{notes[0]}, and there is no other; remove it to start over")
        return None, notes

    def clear(self) -> None:
        """Remove all checkpoints, and their folder."""
        with suppress(OSError):
            for path in [*self.files(), *self._unfinished()]:
                path.unlink(missing_ok=True)
            self.folder.rmdir()
            self.folder.parent.rmdir()  # fails while other peers have some


def _read(path: Path, run: str, unpack: Callable[[bytes], M]) -> Checkpoint[M]:
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no mapping)
    if metadata["version"] != str(VERSION):
        raise CheckpointError(f"{path} is of another version of dslth; remove it to start over")
    if metadata.pop("digest") != _digest(metadata, tensors):
        raise ValueError("damaged")
    if metadata["run"] != run:
        raise CheckpointError(
            f"{path} belongs to another run: other seed, data, model, algorithm or graph; "
            f"choose another --out, or remove {path.parent} to start over"
        )
    sent = {int(key.removeprefix("sent.")): value for key, value in tensors.items() if key.startswith("sent.")}
    return Checkpoint(
        run,
        int(metadata["round"]),
        {key: value for key, value in tensors.items() if not key.startswith("sent.")},
        [(round_, unpack(sent[round_].tobytes())) for round_ in sorted(sent)],
        dict(json.loads(metadata["refused"])),
    )


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, NDArray[np.generic]]) -> str:
    hashed = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for key in sorted(tensors):
        hashed.update(f"{key} {tensors[key].dtype} {tensors[key].shape}\n".encode())
        hashed.update(tensors[key].tobytes())
    return hashed.hexdigest()
