"""What a peer says about its run, as JSON lines; never data, scores or masks."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

__all__ = ["Event", "Finished", "Happening", "Joined", "LinkStats", "Noticed", "RoundReport", "Seconds", "parse"]

Happening = Literal[
    "lost", "back", "left", "moved", "resumed", "skipped", "unsaved", "diverged", "died", "restarted", "gave-up"
]
"""What is out of the ordinary. Of a neighbour: its mask missed a deadline, it is heard again, it left before the end,
it is at another address. Of the peer itself: it went on from a checkpoint, skipped rounds to catch up, could not write
a checkpoint, its loss is not finite. Said by the launcher: the peer's process died, was started again, was given up."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class LinkStats(_Record):
    """Bytes exchanged with one neighbour since the record before.

    Payload is the encoded masks; messages are payloads plus headers, hellos included; link is what the kernel's TCP
    carried (None where it cannot be read).
    """

    payload_sent: int = 0
    payload_received: int = 0
    message_sent: int = 0
    message_received: int = 0
    link_sent: int | None = None
    link_received: int | None = None

    def __sub__(self, earlier: "LinkStats") -> "LinkStats":
        """Give the bytes between two readings; link bytes stay None where they cannot be read."""
        return LinkStats(
            payload_sent=self.payload_sent - earlier.payload_sent,
            payload_received=self.payload_received - earlier.payload_received,
            message_sent=self.message_sent - earlier.message_sent,
            message_received=self.message_received - earlier.message_received,
            link_sent=None if self.link_sent is None else self.link_sent - (earlier.link_sent or 0),
            link_received=None if self.link_received is None else self.link_received - (earlier.link_received or 0),
        )


class Seconds(_Record):
    """Where the time of a round went."""

    compute: float = 0.0
    encode: float = 0.0
    wait: float = 0.0
    decode: float = 0.0
    fine_tune: float = 0.0
    evaluate: float = 0.0


class Joined(_Record):
    """All neighbours have said hello. ``sizes`` are the masked weights of each layer, ``time`` is Unix time.

    ``processor`` is what torch computes with, as in ``AVX2``: masks are bit for bit alike only where that is alike.
    """

    event: Literal["joined"] = "joined"
    peer: int
    time: float
    neighbours: tuple[int, ...]
    model: str
    sizes: tuple[int, ...]
    training_samples: int
    device: str
    processor: Annotated[str, Field(max_length=20, pattern=r"^[A-Za-z0-9_ .+-]*$")] = ""
    links: Mapping[int, LinkStats]


class RoundReport(_Record):
    """One round. Density and flips (share of bits that changed since the last mask sent) are per layer."""

    event: Literal["round"] = "round"
    peer: int
    time: float
    round: int
    loss: float
    accuracy_personal: float | None
    accuracy_global: float | None
    density: tuple[float, ...]
    flips: tuple[float, ...] | None
    mask_digest: str
    links: Mapping[int, LinkStats]
    seconds: Seconds
    missing: tuple[int, ...]
    refused: Mapping[str, int]
    memory_bytes: int


class Finished(_Record):
    """The peer is done or was asked to end; ``mask_digest`` is its ticket's, ``refused`` counts the whole run."""

    event: Literal["finished"] = "finished"
    peer: int
    time: float
    rounds_completed: int
    accuracy_personal: float | None
    accuracy_global: float | None
    mask_digest: str
    links: Mapping[int, LinkStats]
    refused: Mapping[str, int]


class Noticed(_Record):
    """Something out of the ordinary, to be put on a time line; ``round`` is the peer's own."""

    event: Literal["noticed"] = "noticed"
    peer: int
    time: float
    round: int
    what: Happening
    neighbour: int | None = None
    detail: str = ""

    @property
    def links(self) -> Mapping[int, LinkStats]:
        """No bytes: those are in the records before and after."""
        return {}


Event = Joined | RoundReport | Finished | Noticed
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def parse(line: str | bytes) -> Event | None:
    """Read one line; None where it is not one of ours (a torn last line, somebody else's bytes)."""
    try:
        return _EVENT.validate_json(line)
    except ValidationError:
        return None
