"""Garbage sent to a peer during a run: raw bytes, broken greetings, and messages that are nearly right."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import zmq

from dslth import wire
from dslth.bench.stress.relay import HOST, Relays, behind_relays, directed, whereabouts
from dslth.coding import codecs
from dslth.config import RunConfig, TransportName, identity
from dslth.engines.supervisor import run_local
from dslth.learner import Learner
from dslth.runs.events import Event, RoundReport
from dslth.runs.folder import RunFolder
from dslth.seeds import Stream
from dslth.topology import Topology
from dslth.wire import Kind, Refusal

__all__ = ["FuzzResult", "fuzz", "messages"]

VICTIM = 0
BEGIN_ROUND = 20
"""The round in which the garbage starts: by then the victim has all the memory that it needs."""
GROWTH = 0.05
PATIENCE_SECONDS = 120.0
"""How long the victim may take to count what was sent."""
MOUTHS, MOUTHFUL = 16, 6
"""Connections that send it, and how many messages each may have sent that are not counted yet."""
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16 + 1 + 31)


@dataclass(frozen=True)
class FuzzResult:
    """What was sent, what the victim counted by reason, and how its run ended. Memory is resident, in bytes."""

    messages: int
    connections: int
    rounds: int
    refused: Mapping[str, int]
    memory: tuple[float, float]
    masks_compared: int
    masks_changed: int
    failure: str | None

    @property
    def counted(self) -> int:
        """Number of refused messages; connections that sent no message are counted under names of their own."""
        return sum(count for reason, count in self.refused.items() if reason in set(Refusal))

    def conditions(self) -> dict[str, bool]:
        """Return, for each promise, whether it holds."""
        return {
            "no peer failed": self.failure is None,
            "every message is refused and counted": self.counted == self.messages,
            "no mask changed": self.masks_compared > 0 and self.masks_changed == 0,
            "memory is flat": self.memory[1] < (1 + GROWTH) * self.memory[0],
        }

    def __str__(self) -> str:
        before, after = (held / 1e6 for held in self.memory)
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.refused.items()))
        return (
            f"{self.messages} messages, {self.counted} refused, {self.connections} connections, "
            f"{self.rounds} rounds, {self.masks_changed} of {self.masks_compared} masks changed, "
            f"memory {before:.1f} → {after:.1f} MB\n{reasons}"
        )

    def record(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return asdict(self) | {"counted": self.counted, "conditions": self.conditions()}


# --- what is sent ---------------------------------------------------------------------------------------------------


def messages(run: RunConfig, topology: Topology, stream: Stream) -> Iterator[list[bytes]]:
    """Make endless messages that the victim must refuse: random frames, and mutants of its neighbours' messages.

    None is a neighbour's true hello: without keys a peer would have to believe it.
    """
    neighbour = topology.neighbours(VICTIM)[0]
    learner = Learner(neighbour, topology.peers, run.experiment, run.device(neighbour))
    settings = identity(run, topology.digest) | {"layout": "+".join(map(str, learner.sizes))}
    digest, mask = wire.run_digest(settings), learner.mask()
    packed = mask.pack()

    def integer(below: int) -> int:
        return stream.integer() % below

    def noise(size: int) -> bytes:
        return stream.uniform(size).tobytes()[:size]

    def header(sender: int, codec: codecs.Codec, depth: int) -> bytes:
        return wire.mask_header(digest, sender, integer(9999), packed, codec.wire_id, depth, None)

    def hello(kind: Kind, digest: bytes, sizes: tuple[int, ...]) -> wire.Frames:
        return wire.hello(kind, wire.Hello(digest, sizes, sizes), neighbour, integer(1000))

    makers: list[Callable[[], wire.Frames]] = [
        lambda: _flipped(hello(Kind.HELLO, digest, learner.sizes), stream),
        lambda: _flipped((header(neighbour, codecs.BITPACK, 0), packed), stream),
        lambda: (header(integer(9), codecs.BITPACK, integer(200)), packed),
        lambda: (header(neighbour, codecs.CONTEXT, 1), noise(integer(5000))),
        lambda: hello(Kind.HELLO, noise(16), learner.sizes),
        lambda: hello(Kind.HELLO, digest, tuple(integer(10**6) for _ in range(integer(5)))),
        lambda: hello(Kind.WELCOME, digest, learner.sizes),
        lambda: wire.refusal(digest, neighbour, 0, {"seed": "another"}),
        lambda: wire.bye(digest, neighbour, integer(9999)),
        lambda: (header(neighbour, codecs.BITPACK, 0), bytes(wire.max_payload(learner.sizes) + 1)),
    ]
    while True:
        if maker := integer(1 + len(makers)):
            yield [b"".join(makers[maker - 1]())]
        else:
            yield [noise(1 + integer(300)) for _ in range(1 + integer(4))]


def _flipped(frames: wire.Frames, stream: Stream) -> wire.Frames:
    """Flip a bit of the header or of the payload."""
    which = stream.integer() % 2
    damaged = bytearray(frames[which])
    at = stream.integer() % (8 * len(damaged))
    damaged[at // 8] ^= 1 << at % 8
    return (bytes(damaged), frames[1]) if which == 0 else (frames[0], bytes(damaged))


def _garbage(stream: Stream) -> bytes:
    """Make bytes for a connection that never gets as far as a message."""
    noise = stream.uniform(100).tobytes()
    kind, length = stream.integer() % 4, stream.integer() % 400
    if kind == 0:
        return b"GET / HTTP/1.1\r\n\r\n"
    if kind == 1:
        return GREETING[: stream.integer() % 64]
    if kind == 2:
        return GREETING + b"\x04" + noise[:length]
    return GREETING[:10] + noise[:length]


# --- sending it -----------------------------------------------------------------------------------------------------


class _Fuzzer(threading.Thread):
    """Waits until the run is under way, sends everything, waits until it is counted, asks the peers to end."""

    def __init__(self, sent: Iterator[list[bytes]], stream: Stream, count: int, connections: int) -> None:
        super().__init__(name="dslth-fuzz", daemon=True)
        self._sent, self._stream, self._count, self._connections = sent, stream, count, connections
        self._going, self._counted, self._refused = threading.Event(), threading.Event(), 0
        self.folder: RunFolder | None = None
        self.peers: range = range(0)
        self.begun = self.ended = 0

    def take(self, event: Event) -> None:
        """Follow the victim's reports."""
        if isinstance(event, RoundReport) and event.peer == VICTIM:
            self.ended = event.round
            if event.round >= BEGIN_ROUND and not self._going.is_set():
                self.begun = event.round
                self._going.set()
            self._refused = sum(n for reason, n in event.refused.items() if reason in set(Refusal))
            self._counted.set()

    def run(self) -> None:
        """Send everything, then ask the peers to end."""
        self._going.wait()
        assert self.folder is not None  # noqa: S101  (set before the run is)
        victim = whereabouts(self.folder, VICTIM)
        try:
            if victim:
                self._connect(victim.port)
                self._say(victim.port)
        finally:
            for peer in self.peers:
                if found := whereabouts(self.folder, peer):
                    with suppress(ProcessLookupError):
                        os.kill(found.pid, signal.SIGTERM)

    def _connect(self, port: int) -> None:
        for _ in range(self._connections):
            with suppress(OSError), socket.create_connection((HOST, port), timeout=10) as stranger:
                stranger.sendall(_garbage(self._stream))

    def _say(self, port: int) -> None:
        """Send all messages over several connections: a stranger with more than a little waiting is cut off."""
        context = zmq.Context()
        mouths = [context.socket(zmq.DEALER) for _ in range(MOUTHS)]
        for mouth in mouths:
            mouth.setsockopt(zmq.LINGER, 0)
            mouth.connect(f"tcp://{HOST}:{port}")
        give_up, sent = time.monotonic() + PATIENCE_SECONDS, 0
        while self._refused < self._count and time.monotonic() < give_up:  # closing earlier would lose messages
            for mouth in mouths:
                while mouth.poll(0):
                    mouth.recv_multipart()  # the victim's answer: what differs
            if self._refused < sent:
                self._counted.wait(0.1)
                self._counted.clear()
                continue
            give_up = time.monotonic() + PATIENCE_SECONDS
            for number in range(min(MOUTHS * MOUTHFUL, self._count - sent)):
                mouths[number % MOUTHS].send_multipart(next(self._sent))
                sent += 1
        context.destroy(linger=0)


def fuzz(run: RunConfig, topology: Topology, path: RunFolder, count: int, connections: int) -> FuzzResult:
    """Disturb peer 0 of a run, and compare the masks with those of the same rounds undisturbed."""
    endless = run.experiment.model_copy(update={"rounds": 10**6, "evaluate_every": 10**6})
    stream = Stream(run.experiment.seed, "fuzz")
    fuzzer = _Fuzzer(messages(run, topology, stream), stream, count, connections)
    folder = fuzzer.folder = RunFolder(path.path / "fuzzed")
    fuzzer.peers = range(topology.peers)

    def port(peer: int) -> int | None:
        found = whereabouts(folder, peer)
        return found.port if found else None

    relays = Relays(directed(topology), port)
    fuzzer.start()
    try:
        surround = partial(behind_relays, ports=dict(relays.ports))
        settings = run.model_copy(update={"experiment": endless})
        outcome = run_local(settings, topology, folder, watch=fuzzer.take, orphans=False, surround=surround)
    finally:
        relays.close()
    peers = outcome.measured().peers
    rounds = min(peer.rounds_completed for peer in peers)
    calm = run.model_copy(update={"experiment": endless.model_copy(update={"rounds": max(1, rounds)})})
    undisturbed = run_local(calm, topology, RunFolder(path.path / "undisturbed"), transport=TransportName.MEMORY).folder
    masks, expected = _masks(folder, rounds), _masks(undisturbed, rounds)
    held = [event.memory_bytes for event in folder.events()[VICTIM] if isinstance(event, RoundReport)]
    return FuzzResult(
        messages=count,
        connections=connections,
        rounds=rounds,
        refused=peers[VICTIM].refused,
        memory=(median(held[fuzzer.begun // 2 : fuzzer.begun + 1]), median(held[-BEGIN_ROUND // 2 :])),
        masks_compared=len(expected),
        masks_changed=sum(masks.get(key) != mask for key, mask in expected.items()),
        failure=str(outcome.failure) if outcome.failure else None,
    )


def _masks(folder: RunFolder, rounds: int) -> dict[tuple[int, int], str]:
    told = [event for events in folder.events().values() for event in events if isinstance(event, RoundReport)]
    return {(event.peer, event.round): event.mask_digest for event in told if event.round < rounds}
