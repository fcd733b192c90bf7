"""The actions that a peer's exchange asks for; see ``protocol``."""

from collections.abc import Hashable
from dataclasses import dataclass

from dslth.runs.events import Happening
from dslth.wire import Frames, Kind, Refusal

__all__ = ["Action", "Answer", "Connect", "CountLinks", "Identify", "Notice", "Refuse", "Send", "Took"]


@dataclass(frozen=True)
class Connect:
    """Connect to a neighbour at an address, instead of ``before`` (empty: for the first time)."""

    neighbour: int
    address: str
    before: str = ""


@dataclass(frozen=True)
class Send:
    """Send a message to a neighbour, on this peer's own connection."""

    neighbour: int
    kind: Kind
    frames: Frames


@dataclass(frozen=True)
class Answer:
    """Send a message to a neighbour, on the connection that its own came from."""

    neighbour: int
    route: Hashable
    frames: Frames


@dataclass(frozen=True)
class Identify:
    """Count a connection's bytes to a neighbour's edge."""

    neighbour: int
    route: Hashable


@dataclass(frozen=True)
class CountLinks:
    """Read the counters of all connections while they exist: those of a closed connection are lost."""


@dataclass(frozen=True)
class Took:
    """Count a message that was accepted."""

    neighbour: int
    kind: Kind
    frames: Frames


@dataclass(frozen=True)
class Refuse:
    """Count a message that was refused."""

    reason: Refusal


@dataclass(frozen=True)
class Notice:
    """Report something unusual."""

    what: Happening
    round: int
    neighbour: int | None = None
    detail: str = ""


Action = Connect | Send | Answer | Identify | CountLinks | Took | Refuse | Notice
