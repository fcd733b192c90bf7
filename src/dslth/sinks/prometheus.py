"""Prometheus: the state of a run that goes on, at an address that Prometheus scrapes."""

import errno
from collections.abc import Mapping

from dslth.errors import AddressError, ConfigError, DslthError
from dslth.runs.events import Event, Finished, Joined, Noticed, RoundReport
from dslth.sinks.base import About

__all__ = ["Prometheus"]

DEFAULT = "127.0.0.1:9464"


class Prometheus:
    """Serves ``http://HOST:PORT/metrics`` until the run ends; ``where`` is HOST:PORT, by default this machine's 9464.

    Bytes are counted per peer, not per neighbour: a label for each edge would be too many for large graphs.
    """

    def __init__(self, where: str | None, run: About) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
        except ImportError:
            raise DslthError("sink prometheus takes a library: pip install 'dslth[prometheus]'") from None
        host, _, port = (where or DEFAULT).rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ConfigError(f"sink prometheus={where!r:.80}: expected HOST:PORT, as in {DEFAULT}")
        registry = CollectorRegistry()

        def gauge(name: str, help_: str) -> Gauge:
            return Gauge(f"dslth_{name}", help_, ["peer"], registry=registry)

        def counter(name: str, help_: str, *labels: str) -> Counter:
            return Counter(f"dslth_{name}", help_, ["peer", *labels], registry=registry)

        self._peers = Gauge("dslth_peers", "Peers of the run.", registry=registry)
        self._peers.set(run.peers)
        self._finished = Gauge("dslth_peers_finished", "Peers that are done.", registry=registry)
        self._round = gauge("round", "Last round that a peer has reported.")
        self._loss = gauge("loss", "Mean loss of a peer's last round.")
        self._personal = gauge("accuracy_personal", "Share of own test samples that a peer classifies correctly.")
        self._global = gauge("accuracy_global", "Share of all classes' test samples that a peer classifies correctly.")
        self._memory = gauge("memory_bytes", "Peak memory of a peer's process.")
        self._samples = gauge("training_samples", "Samples that a peer learns from.")
        self._payload = counter("payload_bytes", "Encoded masks, by direction.", "direction")
        self._message = counter("message_bytes", "Payloads, headers and hellos, by direction.", "direction")
        self._link = counter("link_bytes", "What TCP carried, by direction.", "direction")
        self._seconds = counter("seconds", "Time of a peer's rounds, by phase.", "phase")
        self._missing = counter("missing_masks", "Neighbours' masks that missed their round.")
        self._refused = counter("refused", "What arrived and was refused, by reason.", "reason")
        self._happenings = counter("happenings", "Unusual events, by kind.", "what")
        self._done: set[int] = set()
        self._known_refused: dict[tuple[str, str], int] = {}
        try:
            self._server, self._thread = start_http_server(int(port), host, registry)
        except OSError as error:
            taken = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise AddressError(f"sink prometheus: {host}:{port} {taken}; choose another HOST:PORT") from None

    def emit(self, event: Event) -> None:
        """Take a report."""
        peer = str(event.peer)
        self._count_bytes(event)
        if isinstance(event, Joined):
            self._samples.labels(peer).set(event.training_samples)
        elif isinstance(event, Noticed):
            self._happenings.labels(peer, event.what).inc()
        elif isinstance(event, Finished):
            self._done.add(event.peer)
            self._finished.set(len(self._done))
            self._count_refused(peer, event.refused)
        else:
            self._count_round(peer, event)

    def _count_bytes(self, event: Event) -> None:
        for stats in event.links.values():
            for name, counter in (("payload", self._payload), ("message", self._message), ("link", self._link)):
                for direction in ("sent", "received"):
                    # a report may correct the one before: a counter never goes down
                    counter.labels(str(event.peer), direction).inc(max(0, getattr(stats, f"{name}_{direction}") or 0))

    def _count_round(self, peer: str, report: RoundReport) -> None:
        self._round.labels(peer).set(report.round)
        self._loss.labels(peer).set(report.loss)
        accuracies = ((self._personal, report.accuracy_personal), (self._global, report.accuracy_global))
        for gauge, share in accuracies:
            if share is not None:
                gauge.labels(peer).set(share)
        self._memory.labels(peer).set(report.memory_bytes)
        self._missing.labels(peer).inc(len(report.missing))
        for phase, seconds in report.seconds.model_dump().items():
            self._seconds.labels(peer, phase).inc(max(0.0, seconds))
        self._count_refused(peer, report.refused)

    def _count_refused(self, peer: str, refused: Mapping[str, int]) -> None:
        """Count what is new: a report counts the whole run."""
        for reason, count in refused.items():
            before = self._known_refused.get((peer, reason), 0)
            self._refused.labels(peer, reason).inc(max(0, count - before))
            self._known_refused[peer, reason] = max(before, count)

    def close(self) -> None:
        """Give the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
