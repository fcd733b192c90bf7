"""What a peer counts, and its reports of it: bytes by edge, refusals by name, seconds by phase, events."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from dslth.exchange.streams import Message
from dslth.runs.events import Accuracies, Event, Finished, Happening, Joined, LinkStats, Noticed, RoundReport, Seconds
from dslth.runs.sinks import Sink
from dslth.transport import Transport
from dslth.wire import Frames, Refusal

__all__ = ["Ledger"]


@dataclass
class _Edge:
    """Bytes exchanged with a neighbour so far."""

    payload_sent: int = 0
    payload_received: int = 0
    message_sent: int = 0
    message_received: int = 0


class Ledger:
    """The counters of one peer; every report goes to all ``sinks``. ``clock`` returns Unix time, or a virtual one."""

    def __init__(
        self,
        peer: int,
        neighbours: Iterable[int],
        transport: Transport,
        sinks: Sequence[Sink],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._peer, self._transport, self._sinks, self._clock = peer, transport, sinks, clock
        self._edges = {neighbour: _Edge() for neighbour in neighbours}
        self._reported = dict.fromkeys(self._edges, LinkStats())
        self._refused: Counter[str] = Counter()
        self._before: Counter[str] = Counter()
        self._spent: dict[str, float] = {}
        self._accuracy: Accuracies | None = None
        self._last_sent: Message | None = None
        self._finite = True

    # --- counting ---------------------------------------------------------------------------------------------------

    def sent(self, neighbour: int, frames: Frames, *, mask: bool = False) -> None:
        """Count a message that was handed to the transport."""
        edge = self._edges[neighbour]
        edge.message_sent += sum(map(len, frames))
        edge.payload_sent += len(frames[1]) if mask else 0

    def received(self, neighbour: int, frames: Sequence[bytes], *, mask: bool = False) -> None:
        """Count a message that was accepted."""
        edge = self._edges[neighbour]
        edge.message_received += sum(map(len, frames))
        edge.payload_received += len(frames[1]) if mask else 0

    def refuse(self, reason: Refusal) -> None:
        """Count a message that was refused."""
        self._refused[reason] += 1

    @property
    def refused(self) -> dict[str, int]:
        """Count what the peer and its transport refused, by reason, also before restarts."""
        return dict(self._before + self._refused + Counter(self._transport.refused()))

    def restore(self, refused: Mapping[str, int], last_sent: Message | None) -> None:
        """Continue counting where the peer was before a restart."""
        self._before = Counter(refused)
        self._last_sent = last_sent

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a phase of the round; phases may be entered several times a round, not nested."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spend(name, time.perf_counter() - start)

    def waited(self, seconds: float) -> None:
        """Count seconds of waiting for neighbours."""
        self.spend("wait", seconds)

    def spend(self, name: str, seconds: float) -> None:
        """Count seconds of a phase that was timed elsewhere."""
        self._spent[name] = self._spent.get(name, 0.0) + seconds

    def spent(self, name: str) -> float:
        """Return the seconds of a phase of this round so far."""
        return self._spent.get(name, 0.0)

    # --- reporting --------------------------------------------------------------------------------------------------

    def joined(self, model: str, sizes: tuple[int, ...], training_samples: int, device: str, processor: str) -> None:
        """Report that the peer has met its neighbours, and begin to count its first round."""
        self._spent = {}
        self._emit(
            Joined(
                peer=self._peer,
                time=self._clock(),
                neighbours=tuple(self._edges),
                model=model,
                sizes=sizes,
                training_samples=training_samples,
                device=device,
                processor=processor,
                links=self._links(),
            )
        )

    def end_round(self, round_: int, message: Message, loss: float, missing: Iterable[int]) -> RoundReport:
        """Return the report of a round as it is before its evaluation, and begin to count the next round."""
        before, self._last_sent = self._last_sent, message
        if self._finite and not math.isfinite(loss):
            self._finite = False
            self.notice("diverged", round_, detail=f"the loss is {loss}; lower experiment.algorithm.lr")
        spent, self._spent = self._spent, {}
        return RoundReport(
            peer=self._peer,
            time=self._clock(),
            round=round_,
            loss=loss,
            accuracy_personal=None,
            accuracy_global=None,
            density=message.density,
            flips=None if before is None else message.flips(before),
            mask_digest=message.digest,
            links=self._links(),
            seconds=Seconds(**spent),
            missing=tuple(sorted(missing)),
            refused=self.refused,
            memory_bytes=_memory(),
        )

    def report(self, ended: RoundReport, accuracy: Accuracies | None = None, seconds: float = 0.0) -> None:
        """Report a round that has ended, with its accuracy if it was evaluated, which took ``seconds``."""
        evaluated: dict[str, object] = {}
        if accuracy is not None:
            self._accuracy = accuracy
            spent = ended.seconds.model_copy(update={"evaluate": ended.seconds.evaluate + seconds})
            evaluated = {"accuracy_personal": accuracy.personal, "accuracy_global": accuracy.common, "seconds": spent}
        self._emit(ended.model_copy(update=evaluated))

    def finished(self, rounds_completed: int, message: Message) -> Finished:
        """Report that the peer is done."""
        accuracy = self._accuracy
        finished = Finished(
            peer=self._peer,
            time=self._clock(),
            rounds_completed=rounds_completed,
            accuracy_personal=accuracy.personal if accuracy else None,
            accuracy_global=accuracy.common if accuracy else None,
            mask_digest=message.digest,
            links=self._links(),
            refused=self.refused,
        )
        self._emit(finished)
        return finished

    def notice(self, what: Happening, round_: int, neighbour: int | None = None, detail: str = "") -> None:
        """Report something unusual."""
        self._emit(
            Noticed(peer=self._peer, time=self._clock(), round=round_, what=what, neighbour=neighbour, detail=detail)
        )

    def _emit(self, event: Event) -> None:
        for sink in self._sinks:
            sink.emit(event)

    def _links(self) -> dict[int, LinkStats]:
        """Return the bytes of each edge since the last report."""
        now = {neighbour: LinkStats(**vars(edge)) for neighbour, edge in self._edges.items()}
        for neighbour, link in (self._transport.link_bytes() or {}).items():
            now[neighbour] = now[neighbour].model_copy(update={"link_sent": link.sent, "link_received": link.received})
        before, self._reported = self._reported, now
        return {neighbour: stats - before[neighbour] for neighbour, stats in now.items()}


def _memory() -> int:
    """Return the resident memory of this process, in bytes; 0 if strangers' connections use up all descriptors."""
    try:
        return int(psutil.Process().memory_info().rss)
    except (OSError, psutil.Error):
        return 0
