"""The figures of a run: what ``--json`` prints and ``summary.json`` holds.

``summary.schema.json`` beside this module is the JSON schema of a Summary.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from dslth.errors import SkippedError
from dslth.runs.events import Event, Finished, Happening, Joined, RoundReport
from dslth.runs.folder import RunFolder

__all__ = ["Happened", "PeerSummary", "Summary", "check_played", "rounds_of", "summarise"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def to_json(self, indent: int | None = None) -> str:
        """Return the figures as one line of JSON, or as lines indented by ``indent`` spaces."""
        return json.dumps(self.model_dump(mode="json"), indent=indent)


class PeerSummary(_Record):
    """The figures of one peer. Bytes are of all its edges together; link bytes are null if TCP cannot be read."""

    id: int
    accuracy_personal: float | None
    """Share of test samples of the peer's own distribution that its last evaluated model classifies correctly."""
    accuracy_global: float | None
    """The same for test samples of all classes alike."""
    mask_digest: str | None
    """The digest of its ticket's mask; null if the peer was stopped and can be resumed."""
    payload_bytes_sent: int
    """Encoded masks."""
    payload_bytes_received: int
    message_bytes_sent: int
    """Payload bytes plus headers, hellos included."""
    message_bytes_received: int
    link_bytes_sent: int | None
    """What TCP carried."""
    link_bytes_received: int | None
    rounds_completed: int
    """The rounds that it has completed, skipped ones included."""
    rounds_played: int
    missing: int
    """How many masks of neighbours missed a deadline."""
    refused: Mapping[str, int]
    """How many messages were refused, by reason."""


class Happened(_Record):
    """Something unusual; ``dslth.runs.events.Happening`` explains each word."""

    peer: int
    """The peer that reports it, or whose process it is."""
    time: float
    """Unix time."""
    round: int
    """The peer's own round."""
    what: Happening
    neighbour: int | None
    """The neighbour that it is about."""
    detail: str


class Summary(_Record):
    """The figures of a run. Bytes are those of all peers together."""

    run_dir: str
    rounds: int
    """The rounds that the foremost peer has completed."""
    seconds: float
    """How long the run took, without the time between an interruption and resuming."""
    seconds_to_first_round: float | None
    """From the launch until every peer had reported its first round; null if one has not."""
    accuracy_personal: float | None
    """The mean over peers."""
    accuracy_global: float | None
    """The mean over peers."""
    message_bits_per_weight_per_round: float | None
    """Message bits per masked weight, directed edge and round."""
    payload_bits_per_weight_per_round: float | None
    """Payload bits per masked weight, directed edge and round."""
    masked_weights: int
    """The number of weights that a mask covers."""
    directed_edges: int
    payload_bytes_sent: int
    message_bytes_sent: int
    link_bytes_sent: int | None
    processors: Mapping[str, tuple[int, ...]]
    """The peers by what torch computed with, as in AVX2; a peer that was resumed on another machine is there twice."""
    peers: tuple[PeerSummary, ...]
    happenings: tuple[Happened, ...]
    """What was unusual, in the order of time."""
    lines_ignored: int
    """Lines in the files of reports that are not reports of their peer."""


def summarise(folder: RunFolder) -> Summary:
    """Work out a run's figures from its files; raises MissingFileError if no peer has left a report."""
    by_peer, others = folder.read()
    peers = tuple(_summarise_peer(peer, events) for peer, events in by_peer.items())
    starts_of_all = [event for events in by_peer.values() for event in events if isinstance(event, Joined)]
    joined = list({event.peer: event for event in starts_of_all}.values())
    weights = sum(joined[0].sizes) if joined else 0
    starts = [event.time for event in joined]
    ends = [events[-1].time for events in by_peer.values()]
    times = [event.time for events in by_peer.values() for event in events]
    firsts = [
        event.time
        for events in by_peer.values()
        for event in events
        if isinstance(event, RoundReport) and event.round == 0
    ]
    # a directed edge carries one message a round, for as many rounds as its sender played
    played = {peer.id: peer.rounds_played for peer in peers}
    sent_over = sum(len(event.neighbours) * played[event.peer] for event in joined)
    started = folder.launched() or min(starts, default=min(ends))
    payload_bytes = sum(peer.payload_bytes_sent for peer in peers)
    message_bytes = sum(peer.message_bytes_sent for peer in peers)
    return Summary(
        run_dir=str(folder.path),
        rounds=max(peer.rounds_completed for peer in peers),
        seconds=round(_running(times, folder.launches() or [started]), 3),
        seconds_to_first_round=round(max(firsts) - started, 3) if len(firsts) == len(by_peer) else None,
        accuracy_personal=_mean(peer.accuracy_personal for peer in peers),
        accuracy_global=_mean(peer.accuracy_global for peer in peers),
        message_bits_per_weight_per_round=_per_weight(message_bytes, weights, sent_over),
        payload_bits_per_weight_per_round=_per_weight(payload_bytes, weights, sent_over),
        masked_weights=weights,
        directed_edges=sum(len(event.neighbours) for event in joined),
        payload_bytes_sent=payload_bytes,
        message_bytes_sent=message_bytes,
        link_bytes_sent=_sum(peer.link_bytes_sent for peer in peers),
        processors=_processors(starts_of_all),
        peers=peers,
        happenings=tuple(Happened(**event.model_dump(exclude={"event"})) for event in folder.noticed(by_peer)),
        lines_ignored=others,
    )


def check_played(peers: Iterable[PeerSummary]) -> None:
    """Raise SkippedError if one of these peers skipped more rounds than it played."""
    few = [peer for peer in peers if 2 * peer.rounds_played < peer.rounds_completed]
    if few:
        more = f", and {len(few) - 1} more peers likewise" if len(few) > 1 else ""
        rounds = f"{few[0].rounds_played:,} of {few[0].rounds_completed:,} rounds"
        raise SkippedError(
            f"peer {few[0].id} played {rounds} and skipped the others to keep up with its neighbours{more}; it learned "
            "little: look at its neighbours, and at the timeline in 'dslth inspect'"
        )


def _summarise_peer(peer: int, events: Sequence[Event]) -> PeerSummary:
    rounds = rounds_of(events)
    evaluated = [event for event in rounds if event.accuracy_personal is not None]
    finished = events[-1] if isinstance(events[-1], Finished) else None  # else it was stopped, or is running
    links = [link for event in events for link in event.links.values()]
    last = evaluated[-1] if evaluated else None
    return PeerSummary(
        id=peer,
        accuracy_personal=last.accuracy_personal if last else None,
        accuracy_global=last.accuracy_global if last else None,
        mask_digest=finished.mask_digest if finished else None,
        payload_bytes_sent=sum(link.payload_sent for link in links),
        payload_bytes_received=sum(link.payload_received for link in links),
        message_bytes_sent=sum(link.message_sent for link in links),
        message_bytes_received=sum(link.message_received for link in links),
        link_bytes_sent=_sum(link.link_sent for link in links),
        link_bytes_received=_sum(link.link_received for link in links),
        rounds_completed=finished.rounds_completed if finished else len(rounds),
        rounds_played=len(rounds),
        missing=sum(len(event.missing) for event in rounds),
        refused=finished.refused if finished else rounds[-1].refused if rounds else {},
    )


def rounds_of(events: Iterable[Event]) -> list[RoundReport]:
    """Return the report of each round, in order; the last one if a round was played again after a crash."""
    by_round = {event.round: event for event in events if isinstance(event, RoundReport)}
    return [by_round[number] for number in sorted(by_round)]


def _running(times: Sequence[float], launches: Sequence[float]) -> float:
    """Add up the seconds from each launch to the last report before the next launch, so that pauses do not count."""
    spans = zip(launches, [*launches[1:], float("inf")], strict=True)
    return sum(max((time for time in times if start <= time < end), default=start) - start for start, end in spans)


def _processors(joined: Iterable[Joined]) -> dict[str, tuple[int, ...]]:
    found: defaultdict[str, set[int]] = defaultdict(set)
    for event in joined:
        if event.processor:
            found[event.processor].add(event.peer)
    return {name: tuple(sorted(found[name])) for name in sorted(found)}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 6) if known else None


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _per_weight(sent: int, weights: int, edges_times_rounds: int) -> float | None:
    return round(8 * sent / (weights * edges_times_rounds), 6) if weights and edges_times_rounds else None
