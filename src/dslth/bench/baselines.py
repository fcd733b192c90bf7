"""The peers of the methods that MCE-PL is compared with: synchronous rounds over the same transport.

A message is a msgpack array [round, sender] and the method's payload; in round -1 it is a hello,
after the last round a bye, both empty. Nothing is unpickled, lengths are checked, and what is not taken in is counted.

What misses its round's deadline is not mixed in, but a method whose messages build on each other learns of it when it
comes. Should one be lost, that neighbour's later ones are refused as ``out-of-step``: missing, and seen to be.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from math import inf
from pathlib import Path
from typing import Any, TextIO

import msgpack
import numpy as np
import psutil

from dslth.bench.methods import METHODS, Method
from dslth.config import ExperimentConfig
from dslth.engines.base import PeerJob, Surroundings
from dslth.errors import JoinError
from dslth.learner import processor, threads
from dslth.run import sinks
from dslth.run.events import Accuracies, Event, Finished, Joined, LinkStats, RoundReport, Seconds
from dslth.run.folder import RunFolder
from dslth.transport import Delivery, Transport
from dslth.transport.zeromq import ZeroMqTransport

__all__ = ["Baseline", "Loop", "before_exchange", "read_header"]

TICK = 0.2
AHEAD = 8
"""Rounds that a neighbour may be ahead, where this peer misses deadlines and the neighbour does not."""
LEAVE_SECONDS = 5.0
MAX_HEADER = 16


@dataclass(frozen=True)
class Baseline:
    """What ``run_local`` lets each peer be: one of METHODS, at its own learning rate or another one."""

    method: str
    lr: float | None = None

    def __call__(self, job: PeerJob, surroundings: Surroundings) -> Finished:
        """Run one peer from listening to its final report; JoinError where a neighbour does not come."""
        folder, peer = job.folder, job.peer
        with threads(job.run.device(peer).threads):
            method = METHODS[self.method](peer, job.run, job.topology, self.lr)
            transport = ZeroMqTransport(method.largest)
            outputs: list[sinks.Sink] = []
            try:
                addresses = surroundings.meet(transport.listen(job.listen))
                outputs += [sinks.JsonLines(folder.reports(peer)), *surroundings.sinks]
                loop = Loop(peer, job.run.experiment, method, transport, outputs, surroundings.stop)
                loop.join(addresses, job.join_timeout)
                with before_exchange(folder, peer).open("w", encoding="utf-8") as before:
                    return loop.play(before)
            finally:
                transport.close()
                for output in outputs[:1]:
                    output.close()


@dataclass
class Loop:
    """One peer in synchronous rounds: local steps, send, gather until the run's deadline, absorb, evaluate, report."""

    peer: int
    experiment: ExperimentConfig
    method: Method
    transport: Transport
    outputs: Sequence[sinks.Sink]
    stop: threading.Event

    def __post_init__(self) -> None:
        neighbours = self.method.weights if self.method.exchanges else ()
        self._edges: dict[int, Counter[str]] = {other: Counter() for other in neighbours}
        self._awaited = set(self._edges)
        self._heard = dict.fromkeys(self._edges, -2)  # the last round of each; hellos are of round -1
        self._reported = dict.fromkeys(self._edges, LinkStats())
        self._inbox: dict[int, dict[int, Any]] = {}
        self._refused: Counter[str] = Counter()
        self._decoding = 0.0

    def join(self, addresses: Sequence[str], seconds: float) -> None:
        """Wait for all neighbours; JoinError where one does not come."""
        for neighbour in self._edges:
            self.transport.connect(neighbour, addresses[neighbour])
        missing = self._edges.keys() - self._exchange(-1, b"", seconds).keys()
        if missing and not self.stop.is_set():
            raise JoinError(f"peer {self.peer} waited {seconds:g} s for peers {sorted(missing)}")
        method = self.method
        self._emit(
            Joined(
                **self._common(),
                neighbours=tuple(self._edges),
                model=self.experiment.model.name,
                sizes=method.net.masked_sizes,
                training_samples=len(method.samples),
                device=method.device.device,
                processor=processor(),
            )
        )

    def play(self, before: TextIO) -> Finished:
        """Play all rounds and leave. Accuracies before each exchange go into ``before``."""
        accuracy = None
        rounds = self.experiment.rounds
        done = 0
        while done < rounds and not self.stop.is_set():
            due = (done + 1) % self.experiment.evaluate_every == 0 or done + 1 == rounds
            accuracy = self._play(done, before if due else None) or accuracy
            done += not self.stop.is_set()
        self._exchange(rounds, b"", LEAVE_SECONDS)  # who leaves at once takes its connections' counters along
        finished = Finished(
            **self._common(),
            **_shares(accuracy),
            rounds_completed=done,
            mask_digest=self.method.digest,
            refused=dict(self._refused),
        )
        self._emit(finished)
        return finished

    def _play(self, round_: int, before: TextIO | None) -> Accuracies | None:
        method = self.method
        marks = [time.perf_counter()]
        with self._slowed():
            loss = method.learn(round_)
        learned = method.x.clone()
        marks.append(time.perf_counter())
        payload = method.outgoing(round_)
        marks.append(time.perf_counter())
        self._decoding = 0.0
        deadline = self.experiment.deadline
        received = self._exchange(round_, payload, inf if deadline == "none" else deadline)
        marks.append(time.perf_counter())
        if self.stop.is_set():
            return None
        method.absorb(received)
        marks.append(time.perf_counter())
        accuracy = None
        if before is not None:
            accuracy = method.evaluate(method.x)
            before.write(json.dumps([round_, *astuple(method.evaluate(learned))]) + "\n")
        marks.append(time.perf_counter())
        compute, encode, exchange, absorb, evaluate = np.diff(marks)
        wait, decode = exchange - self._decoding, self._decoding
        self._emit(
            RoundReport(
                **self._common(),
                **_shares(accuracy),
                round=round_,
                loss=loss,
                density=method.density,
                flips=None,
                mask_digest=method.digest,
                seconds=Seconds(
                    compute=compute, encode=encode, wait=wait, decode=decode, fine_tune=absorb, evaluate=evaluate
                ),
                missing=tuple(sorted(self._edges.keys() - received.keys())),
                refused=dict(self._refused),
                memory_bytes=psutil.Process().memory_info().rss,
            )
        )
        return accuracy

    @contextmanager
    def _slowed(self) -> Iterator[None]:
        """Stretch the time of a computation to that of a device of the profile's speed, as MCE-PL's peers do."""
        start = time.perf_counter()
        yield
        self.stop.wait((time.perf_counter() - start) * (1 / self.method.device.speed - 1))

    def _exchange(self, round_: int, payload: bytes, seconds: float) -> dict[int, Any]:
        """Say something to all neighbours, and give what each said in this round; who misses it is not waited for."""
        message = msgpack.packb([round_, self.peer]) + payload
        silent = set(self._edges)
        deadline = time.monotonic() + seconds
        self._say(message, payload, silent)
        while not self.stop.is_set() and (missing := self._awaited & (self._unheard(round_) | silent)):
            if (left := deadline - time.monotonic()) <= 0:
                self._awaited -= missing
            elif delivery := self.transport.receive(min(left, TICK)):
                start = time.perf_counter()
                try:
                    self._take(delivery, round_)
                except ValueError as error:
                    self._refused[str(error)] += 1
                self._decoding += time.perf_counter() - start
            self._say(message, payload, silent)  # to those who were not connected yet
        return self._inbox.pop(round_, {})

    def _unheard(self, round_: int) -> set[int]:
        return self._edges.keys() - self._inbox.get(round_, {}).keys()

    def _say(self, message: bytes, payload: bytes, silent: set[int]) -> None:
        """Send to those who are connected, and take them out of ``silent``."""
        for neighbour in silent & self.transport.connected():
            if self.transport.send(neighbour, message):
                silent.remove(neighbour)
                self._edges[neighbour].update(payload_sent=len(payload), message_sent=len(message))

    def _take(self, delivery: Delivery, now: int) -> None:
        """Read a neighbour's next message; ValueError, with the reason's name, where it is none."""
        message = delivery.message or b""
        round_, sender, payload = read_header(message)
        if sender not in self._edges or not self._heard[sender] < round_ <= now + AHEAD:
            raise ValueError("out-of-turn")
        if self.method.incremental and round_ > self._heard[sender] + 1:
            raise ValueError("out-of-step")
        content = self.method.decode(payload) if 0 <= round_ < self.experiment.rounds else None
        self._heard[sender] = round_
        if round_ >= now:
            self._inbox.setdefault(round_, {})[sender] = content
        elif content is not None:
            self.method.hear_late(sender, content)
        self._awaited.add(sender)
        self.transport.identify(delivery.route, sender)
        self._edges[sender].update(payload_received=len(payload), message_received=len(message))

    def _common(self) -> dict[str, Any]:
        """Return what every report says: who, when, and the bytes of each edge since the last report."""
        now, links = {}, self.transport.link_bytes() or {}
        for neighbour, edge in self._edges.items():
            link = links.get(neighbour)
            now[neighbour] = LinkStats(
                **edge, link_sent=link.sent if link else None, link_received=link.received if link else None
            )
        before, self._reported = self._reported, now
        return {"peer": self.peer, "time": time.time(), "links": {other: now[other] - before[other] for other in now}}

    def _emit(self, event: Event) -> None:
        for output in self.outputs:
            output.emit(event)


def before_exchange(folder: RunFolder, peer: int) -> Path:
    """Where a peer's accuracies after local steps, before the exchange, are: JSON lines [round, personal, global]."""
    return folder.path / "peers" / f"before-{peer}.jsonl"


def read_header(message: bytes) -> tuple[int, int, bytes]:
    """Check a message's form and return (round, sender, payload); ValueError where it is none."""
    unpacker = msgpack.Unpacker(max_buffer_size=MAX_HEADER)
    unpacker.feed(message[:MAX_HEADER])
    try:
        header = unpacker.unpack()
    except (ValueError, msgpack.UnpackException):
        raise ValueError("malformed") from None
    if type(header) is not list or [type(field) for field in header] != [int, int]:
        raise ValueError("malformed")
    return header[0], header[1], message[unpacker.tell() :]


def _shares(accuracy: Accuracies | None) -> dict[str, Any]:
    return {
        "accuracy_personal": accuracy.personal if accuracy else None,
        "accuracy_global": accuracy.common if accuracy else None,
    }
