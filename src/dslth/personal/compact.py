"""The compact form of a ticket: seed, settings, and the mask coded against what the seed alone tells of it.

It is what a peer would send to a neighbour that knows nothing but the run's settings: a key frame. Byte by byte, all
integers big-endian::

    0    4     DSLT
    4    1     version, 1
    5    1     codec, by its wire id
    6    4     length of the head
    10   4     length of the payload
    14         head: JSON with peer, classes, ones (kept weights of each layer) and experiment
               payload: the mask
               SHA-256 of all before the payload, and of the packed mask
"""

import hashlib
from pathlib import Path, PurePath
from struct import Struct
from typing import Annotated

from pydantic import Field

from dslth import files
from dslth.coding import codecs
from dslth.coding.forecast import Forecast
from dslth.coding.history import History
from dslth.config import ELSEWHERE, MOST, MOST_CLASSES, CodecName, ExperimentConfig, Inputs, Scores, Settings
from dslth.errors import MissingFileError, OutputError
from dslth.learning import networks, supermask
from dslth.learning.supermask import FrozenNet
from dslth.personal import nets
from dslth.personal.inputs import inputs_by_name, inputs_of
from dslth.runs import tickets
from dslth.runs.tickets import Ticket

__all__ = ["MAGIC", "VERSION", "load", "pack", "store", "unpack"]

MAGIC, VERSION = b"DSLT", 1
PREFIX = Struct(">4sBBII")
DIGEST = 32
MOST_BYTES = 1 << 30
"""Of a file that is read at all."""


class Head(Settings):
    """What stands before the mask."""

    peer: Annotated[int, Field(ge=0, le=MOST)]
    classes: Annotated[int, Field(ge=1, le=MOST_CLASSES)]
    ones: tuple[Annotated[int, Field(ge=0, le=MOST)], ...]
    experiment: ExperimentConfig
    inputs: Inputs | None = None


def load(path: Path, model: str | None = None) -> Ticket:
    """Read a ticket of either form, safetensors or compact; ``model`` names the code of an own network.

    Raises MissingFileError, ConfigError if a compact one needs own code that is not named.
    """
    try:
        with path.open("rb") as file:
            compact = file.read(len(MAGIC)) == MAGIC
        return unpack(files.read(path, MOST_BYTES), model) if compact else tickets.load(path, model)
    except (OSError, ValueError) as error:
        raise MissingFileError(f"no ticket in {path}: {getattr(error, 'strerror', None) or error}") from None


def store(ticket: Ticket, path: Path) -> int:
    """Write a ticket's compact form; return its bytes. Raises OutputError."""
    content = pack(ticket)
    try:
        files.replace(path, content)
    except OSError as error:
        raise OutputError(f"cannot write the ticket {path}: {error.strerror}") from None
    return len(content)


def pack(ticket: Ticket) -> bytes:
    """Return the compact form."""
    given, data, model = inputs_of(ticket), ticket.experiment.data, ticket.experiment.model
    here = {  # without paths of the run's machine
        "data": data.model_copy(
            update={"folder": None} | ({} if data.path is None else {"path": _end(PurePath(data.path))})
        ),
        "model": model.model_copy(update={"name": model.title}) if model.own else model,
    }
    experiment = ticket.experiment.model_copy(update=here)
    ones = ticket.mask.ones
    head = Head(peer=ticket.peer, classes=given.classes, ones=ones, experiment=experiment, inputs=ticket.inputs)
    codec, payload = codecs.encode(ticket.mask, _history(nets.net_of(ticket), head), CodecName.AUTO)
    text = head.model_dump_json(exclude={"inputs"} if head.inputs is None else None).encode()
    start = PREFIX.pack(MAGIC, VERSION, codec.wire_id, len(text), len(payload)) + text
    return start + payload + hashlib.sha256(start + ticket.mask.pack()).digest()


def _end(path: PurePath) -> str:
    """Return a path without the folders of the run's machine: its name, or all from the part with the peer's id."""
    own = (number for number, part in enumerate(path.parts) if "{id}" in part)
    return str(PurePath(*path.parts[next(own, -1) :]))


def unpack(content: bytes, model: str | None = None) -> Ticket:
    """Read the compact form; ``model`` names the code of an own network.

    Raises ValueError if it is damaged, or of another version, ConfigError if it needs own code that is not named.
    """
    if len(content) < PREFIX.size + DIGEST or content[: len(MAGIC)] != MAGIC:
        raise ValueError("it is no compact ticket, or cut off")
    _, version, codec, head_size, payload_size = PREFIX.unpack_from(content)
    if version != VERSION:
        raise ValueError(f"it is a compact ticket of version {version}; this dslth reads {VERSION}")
    if codec not in codecs.BY_ID:
        raise ValueError(f"there is no codec {codec}")
    end = PREFIX.size + head_size
    if len(content) != end + payload_size + DIGEST:
        raise ValueError(f"{len(content):,} bytes, where its head says {end + payload_size + DIGEST:,}")
    head = Head.model_validate_json(content[PREFIX.size : end], context=ELSEWHERE)
    experiment = tickets.with_code(head.experiment, model)
    net = networks.frozen(experiment, head.inputs or inputs_by_name(experiment.data, head.classes))
    if len(head.ones) != len(net.sizes) or any(k > n for k, n in zip(head.ones, net.sizes, strict=True)):
        raise ValueError("its layers are not those of its network")
    mask = codecs.BY_ID[codec].decode(content[end : end + payload_size], _history(net, head))
    if hashlib.sha256(content[:end] + mask.pack()).digest() != content[-DIGEST:]:
        raise ValueError("it does not match its digest")
    return Ticket(head.peer, experiment, tuple(tuple(w.shape) for w in net.weights), mask, head.inputs)


def _history(net: FrozenNet, head: Head) -> History:
    """Return what the seed alone tells of the mask."""
    algorithm, seed = head.experiment.algorithm, head.experiment.seed
    owner = head.peer if algorithm.scores == Scores.OWN else "common"
    first = [mask.numpy().astype(bool) for mask in supermask.bernoulli_masks(net, seed, algorithm.density)]
    return History(Forecast(supermask.first_magnitudes(seed, owner, first, algorithm.lift), head.ones))
