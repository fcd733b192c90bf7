"""What a peer reports about its run, as JSON lines; never data, scores or masks.

Others show it on terminals and add it up, so every field is bounded: a line with a number out of range is not a report,
text is cut and its control characters are written out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from dslth.terminal import visible

__all__ = [
    "Accuracies",
    "Event",
    "Finished",
    "Happening",
    "Joined",
    "LinkStats",
    "Noticed",
    "RoundReport",
    "Seconds",
    "parse",
]

Happening = Literal[
    "lost", "back", "left", "moved", "resumed", "skipped", "unsaved", "diverged", "died", "restarted", "gave-up"
]
"""Unusual events. Of a neighbour: its mask missed a deadline, it is heard again, it left before the end, it is at
another address. Of the peer itself: it resumed from a checkpoint, skipped rounds to catch up, could not write a
checkpoint, its loss is not finite. From the launcher: the peer's process died, was restarted, was given up."""

MOST = 2**53
"""Beyond it JSON readers lose digits."""
LATEST = 1e11
"""Seconds; as Unix time the year 5138."""
MANY = 1 << 16
"""Neighbours or layers: more than a machine has ports."""
REASONS = 100
LONGEST = 1000
"""Characters of a text."""


def _bounded(text: Any) -> Any:
    return visible(text[:LONGEST])[:LONGEST] if isinstance(text, str) else text


Count = Annotated[int, Field(ge=0, le=MOST)]
Bytes = Annotated[int, Field(ge=-MOST, le=MOST)]
Duration = Annotated[float, Field(ge=-LATEST, le=LATEST, allow_inf_nan=False)]
Time = Annotated[float, Field(ge=0, le=LATEST, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Shares = Annotated[tuple[Share, ...], Field(max_length=MANY)]
Counts = Annotated[tuple[Count, ...], Field(max_length=MANY)]
Words = Annotated[str, BeforeValidator(_bounded)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{0,64}$")]
Reason = Annotated[str, Field(pattern="^[a-z0-9-]{1,40}$")]
Refused = Annotated[Mapping[Reason, Count], Field(max_length=REASONS)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class LinkStats(_Record):
    """Bytes exchanged with one neighbour since the previous record.

    Payload is the encoded masks; messages are payloads plus headers, hellos included; link is what the kernel's TCP
    carried (None where it cannot be read).
    """

    payload_sent: Bytes = 0
    payload_received: Bytes = 0
    message_sent: Bytes = 0
    message_received: Bytes = 0
    link_sent: Bytes | None = None
    link_received: Bytes | None = None

    def __sub__(self, earlier: "LinkStats") -> "LinkStats":
        """Return the bytes between two readings; link bytes stay None where they cannot be read."""
        return LinkStats(
            payload_sent=self.payload_sent - earlier.payload_sent,
            payload_received=self.payload_received - earlier.payload_received,
            message_sent=self.message_sent - earlier.message_sent,
            message_received=self.message_received - earlier.message_received,
            link_sent=None if self.link_sent is None else self.link_sent - (earlier.link_sent or 0),
            link_received=None if self.link_received is None else self.link_received - (earlier.link_received or 0),
        )


class Seconds(_Record):
    """What the time of a round was spent on."""

    compute: Duration = 0.0
    encode: Duration = 0.0
    wait: Duration = 0.0
    decode: Duration = 0.0
    fine_tune: Duration = 0.0
    evaluate: Duration = 0.0


@dataclass(frozen=True)
class Accuracies:
    """Shares of correctly classified test samples: of the peer's own distribution, and of all classes alike.

    There are none of the latter where each peer has data of its own.
    """

    personal: float
    common: float | None


Links = Annotated[Mapping[Count, LinkStats], Field(max_length=MANY)]


class Joined(_Record):
    """All neighbours have said hello. ``sizes`` are the masked weights of each layer, ``time`` is Unix time.

    ``processor`` is what torch computes with, as in ``AVX2``: masks are bit for bit the same only if that is the same.
    """

    event: Literal["joined"] = "joined"
    peer: Count
    time: Time
    neighbours: Counts
    model: Words
    sizes: Counts
    training_samples: Count
    device: Words
    processor: Annotated[str, Field(max_length=20, pattern=r"^[A-Za-z0-9_ .+-]*$")] = ""
    links: Links


class RoundReport(_Record):
    """One round. Density and flips (share of bits that changed since the last mask sent) are per layer.

    Only the loss may be infinite or not a number: it is where a run diverges.
    """

    event: Literal["round"] = "round"
    peer: Count
    time: Time
    round: Count
    loss: float
    accuracy_personal: Share | None
    accuracy_global: Share | None
    density: Shares
    flips: Shares | None
    mask_digest: Digest
    links: Links
    seconds: Seconds
    missing: Counts
    refused: Refused
    memory_bytes: Count


class Finished(_Record):
    """The peer is done, or was asked to end; ``mask_digest`` is its ticket's, ``refused`` counts the whole run."""

    event: Literal["finished"] = "finished"
    peer: Count
    time: Time
    rounds_completed: Count
    accuracy_personal: Share | None
    accuracy_global: Share | None
    mask_digest: Digest
    links: Links
    refused: Refused


class Noticed(_Record):
    """Something unusual, for the timeline; ``round`` is the peer's own."""

    event: Literal["noticed"] = "noticed"
    peer: Count
    time: Time
    round: Count
    what: Happening
    neighbour: Count | None = None
    detail: Words = ""

    @property
    def links(self) -> Mapping[int, LinkStats]:
        """No bytes: they are in the records before and after."""
        return {}


Event = Joined | RoundReport | Finished | Noticed
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def parse(line: str | bytes) -> Event | None:
    """Read one line; None if it is not a report (an incomplete last line, somebody else's bytes)."""
    try:
        return _EVENT.validate_json(line)
    except ValidationError:
        return None
