"""The figures of a run that its pictures show, as rows of a table; from its folder, also while it goes on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import log2
from pathlib import Path
from typing import Any

import numpy as np

from dslth import config, topology
from dslth.config import Phase, RunConfig
from dslth.errors import MissingFileError
from dslth.runs import tickets
from dslth.runs.events import Event, Joined, RoundReport
from dslth.runs.folder import RunFolder
from dslth.runs.summary import Summary, rounds_of, summarise
from dslth.runs.tickets import Ticket
from dslth.show.words import amount, percent
from dslth.topology import Topology

__all__ = ["Opened", "Rows", "differing", "facts", "layers", "similarities"]

Rows = list[dict[str, Any]]
MOST_PEERS_PLACED = 200
"""Up to so many, nodes are placed by all their distances; beyond, that takes too long."""


@dataclass
class Opened:
    """A run folder, read once."""

    path: Path
    summary: Summary
    settings: RunConfig
    graph: Topology
    events: Mapping[int, Sequence[Event]] = field(repr=False)

    @classmethod
    def of(cls, path: Path) -> "Opened":
        """Read a run folder; raises MissingFileError if no peer has left a report in it."""
        folder = RunFolder(path)
        summary = summarise(folder)
        settings = config.load(path / "topology.yaml")
        graph = topology.build(settings.graph, settings.experiment.seed)
        return cls(path, summary, settings, graph, folder.events())

    @property
    def name(self) -> str:
        """What its folder is called."""
        return self.path.resolve().name

    @property
    def weights(self) -> int:
        """Number of masked weights."""
        return self.summary.masked_weights

    def reports(self) -> Iterator[RoundReport]:
        """Yield the report of every round of every peer."""
        for events in self.events.values():
            yield from rounds_of(events)

    # --- rows ---------------------------------------------------------------------------------------------------

    def rounds(self) -> Rows:
        """Return a row for each peer and round: accuracies in percent, loss, bits per weight, kilobytes so far."""
        rows: Rows = []
        for peer, events in self.events.items():
            sent = 0
            for report in rounds_of(events):
                sent += sum(link.message_sent for link in report.links.values())
                payload = sum(link.payload_sent for link in report.links.values())
                edges = len(self.graph.neighbours(peer)) * self.weights
                rows.append(
                    {
                        "peer": peer,
                        "round": report.round + 1,
                        "accuracy": _percent(report.accuracy_personal),
                        "accuracy on all classes": _percent(report.accuracy_global),
                        "loss": round(report.loss, 5) if np.isfinite(report.loss) else None,
                        "bits per weight": round(8 * payload / edges, 6) if edges else None,
                        "entropy": self._entropy(report),
                        "sent so far, kB": round(sent / 1e3, 3),
                    }
                )
        return rows

    def _entropy(self, report: RoundReport) -> float | None:
        """Return the bits per weight that flips cost which are spread evenly within each layer."""
        sizes = self._sizes()
        if report.flips is None or not sizes:
            return None
        bits = sum(n * _binary_entropy(flips) for n, flips in zip(sizes, report.flips, strict=False))
        return round(bits / sum(sizes), 6)

    def _sizes(self) -> Sequence[int]:
        joined = (event for events in self.events.values() for event in events if isinstance(event, Joined))
        return next((event.sizes for event in joined), ())

    def means(self) -> Rows:
        """Return a row for each round: mean, worst, best accuracy of the peers evaluated in it; bytes of all so far."""
        by_round: dict[int, list[float]] = {}
        sent: dict[int, float] = {}
        for report in self.reports():
            round_ = report.round + 1
            sent[round_] = sent.get(round_, 0.0) + sum(link.message_sent for link in report.links.values())
            if report.accuracy_personal is not None:
                by_round.setdefault(round_, []).append(100 * report.accuracy_personal)
        total, so_far = 0.0, {}
        for round_ in sorted(sent):
            so_far[round_] = total = total + sent[round_]
        return [
            {
                "run": self.name,
                "round": round_,
                "mean": round(sum(shares) / len(shares), 3),
                "worst": round(min(shares), 3),
                "best": round(max(shares), 3),
                "sent by all, kB": round(so_far[round_] / 1e3, 3),
            }
            for round_, shares in sorted(by_round.items())
        ]

    def peers(self) -> Rows:
        """Return a row for each peer with its place in the picture of the graph."""
        places = self._places()
        return [
            {
                "peer": peer.id,
                "accuracy": _percent(peer.accuracy_personal),
                "accuracy on all classes": _percent(peer.accuracy_global),
                "rounds": peer.rounds_completed,
                "sent, kB": peer.message_bytes_sent / 1e3,
                "missed": peer.missing,
                "refused": sum(peer.refused.values()),
                "device": self.settings.device(peer.id).kind,
                **places[peer.id],
            }
            for peer in self.summary.peers
        ]

    def links(self) -> Rows:
        """Return a row for each link with the places of its ends; kilobytes are those of both directions."""
        sent: dict[tuple[int, int], int] = {}
        for events in self.events.values():
            for event in events:
                for other, link in getattr(event, "links", {}).items():
                    key = (min(event.peer, other), max(event.peer, other))
                    sent[key] = sent.get(key, 0) + link.message_sent
        places = self._places()
        return [
            {
                "link": f"{a} – {b}",
                "messages, kB": sent.get((a, b), 0) / 1e3,
                **places[a],
                "x2": places[b]["x"],
                "y2": places[b]["y"],
            }
            for a, b in self.graph.edges
        ]

    def _places(self) -> dict[int, dict[str, float]]:
        """Place the peers: on a circle where that is the graph, else by their distances."""
        import networkx as nx

        graph = self.graph.to_networkx()
        degrees = {degree for _, degree in graph.degree()}
        if degrees == {2} or self.graph.peers < 4 or (len(degrees) == 1 and self.graph.peers - 1 in degrees):
            found = nx.circular_layout(graph)
        elif self.graph.peers <= MOST_PEERS_PLACED:
            found = nx.kamada_kawai_layout(graph)
        else:
            found = nx.spring_layout(graph, seed=1)
        return {peer: {"x": round(float(x), 4), "y": round(float(y), 4)} for peer, (x, y) in found.items()}

    def seconds(self) -> Rows:
        """Return a row for each peer and phase: the seconds that it took in all rounds."""
        spent: dict[tuple[int, str], float] = {}
        for report in self.reports():
            for phase in Phase:
                key = report.peer, phase.value.replace("_", "-")
                spent[key] = spent.get(key, 0.0) + getattr(report.seconds, phase.value)
        return [{"peer": peer, "phase": phase, "seconds": round(s, 4)} for (peer, phase), s in spent.items()]

    def happenings(self) -> Rows:
        """Return a row for each unusual thing: seconds after the first report, peer, what, detail."""
        times = [event.time for events in self.events.values() for event in events]
        start = min(times, default=0.0)
        return [
            {
                "second": round(happened.time - start, 2),
                "peer": happened.peer,
                "what": happened.what,
                "neighbour": happened.neighbour,
                "detail": happened.detail,
            }
            for happened in self.summary.happenings
        ]

    def masks(self) -> dict[int, Ticket]:
        """Return the tickets of the peers that have finished."""
        found = {}
        for peer in self.summary.peers:
            try:
                found[peer.id] = tickets.load(RunFolder(self.path).ticket(peer.id))
            except MissingFileError:
                continue
        return found

    def settled(self) -> Rows:
        """Return the settings that count, flat: what all peers agreed on."""
        agreed = config.identity(self.settings, self.graph.digest)
        return [{"setting": key, "value": value[:200]} for key, value in agreed.items()]


def similarities(masks: Mapping[int, Ticket]) -> Rows:
    """Return a row for each pair of peers: the share of weights in percent that both keep or both drop."""
    bits = {peer: np.concatenate([layer.ravel() for layer in t.mask.arrays()]) * 2.0 - 1 for peer, t in masks.items()}
    if not bits:
        return []
    table = np.stack(list(bits.values())).astype(np.float32)
    agree = (table @ table.T / table.shape[1] + 1) * 50
    return [
        {"peer": a, "other": b, "alike": round(float(agree[i, j]), 2)}
        for i, a in enumerate(bits)
        for j, b in enumerate(bits)
    ]


def layers(masks: Mapping[int, Ticket]) -> Rows:
    """Return a row for each peer and layer: percent of weights kept, and of filters that keep one at least."""
    rows: Rows = []
    for peer, ticket in masks.items():
        for number, (shape, mask) in enumerate(zip(ticket.shapes, ticket.mask.arrays(), strict=True)):
            filters = mask.reshape(shape[0], -1).any(1)
            rows.append(
                {
                    "peer": peer,
                    "layer": f"{number}: {'x'.join(map(str, shape))}",
                    "weights kept, %": round(100 * float(mask.mean()), 2),
                    "filters left, %": round(100 * float(filters.mean()), 2),
                }
            )
    return rows


def facts(runs: Sequence[Opened]) -> dict[str, Any]:
    """Return the figures of runs, a column each."""
    rows = [
        ["peers", *(str(len(run.summary.peers)) for run in runs)],
        ["rounds", *(f"{run.summary.rounds} of {run.settings.experiment.rounds}" for run in runs)],
        ["personal accuracy, mean", *(percent(run.summary.accuracy_personal) for run in runs)],
        ["accuracy on all classes, mean", *(percent(run.summary.accuracy_global) for run in runs)],
        ["message bytes sent", *(amount(run.summary.message_bytes_sent) for run in runs)],
        ["masked weights x directed edges", *(f"{r.weights:,} x {r.summary.directed_edges}" for r in runs)],
        ["seconds", *(f"{run.summary.seconds:.1f}" for run in runs)],
        ["unusual", *(str(len(run.summary.happenings)) for run in runs)],
    ]
    return {"columns": ["", *(run.name for run in runs)], "rows": rows}


def differing(runs: Sequence[Opened]) -> dict[str, Any]:
    """Return the settings in which runs differ (of one run: all), a column each."""
    rows = []
    settings = [{row["setting"]: row["value"] for row in run.settled()} for run in runs]
    for key in {key: None for known in settings for key in known}:
        values = [known.get(key, "–") for known in settings]
        if len(runs) == 1 or len(set(values)) > 1:
            rows.append([key, *values])
    return {"columns": ["", *(run.name for run in runs)], "rows": rows}


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 3)


def _binary_entropy(p: float) -> float:
    return 0.0 if p in (0, 1) else -p * log2(p) - (1 - p) * log2(1 - p)
