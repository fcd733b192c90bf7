"""A network that loses, delays, doubles, swaps and damages messages: for tests, and for ``--faults``."""

import heapq
import re
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields
from itertools import count

from dslth.errors import ConfigError
from dslth.seeds import Stream
from dslth.transport.base import Delivery, LinkBytes, Transport

__all__ = ["OVERTAKEN_SECONDS", "Faults", "FaultyTransport", "damaged", "parse"]

OVERTAKEN_SECONDS = 0.1
"""How much later than others an overtaken message leaves."""
NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?"


@dataclass(frozen=True)
class Faults:
    """Shares of messages that are lost, doubled, overtaken, damaged; ``delay`` of each message in seconds."""

    drop: float = 0.0
    delay: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0

    def __str__(self) -> str:
        words = {field.name: f"{getattr(self, field.name)}" + "s" * (field.name == "delay") for field in fields(self)}
        return ",".join(f"{name}={word}" for name, word in words.items())


def parse(text: str) -> Faults:
    """Read ``drop=0.1,delay=50ms,duplicate=0.05,reorder=0.1,corrupt=0.01``; each may be left out.

    Raises ConfigError.
    """
    known = [field.name for field in fields(Faults)]
    found: dict[str, float] = {}
    for word in text.split(","):
        name, _, value = word.strip().partition("=")
        if name not in known or name in found:
            what = "twice" if name in found else "no such fault"
            raise ConfigError(f"--faults: {name[:40]!r}: {what}; write {', '.join(known)} as in drop=0.1,delay=50ms")
        found[name] = _seconds(value) if name == "delay" else _share(name, value)
    return Faults(**found)


def _share(name: str, text: str) -> float:
    share = float(text) if re.fullmatch(NUMBER, text) else -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"--faults: {name} is {text[:40]!r}: expected a share of messages from 0 to 1")
    return share


def _seconds(text: str) -> float:
    found = re.fullmatch(f"({NUMBER})(ms|s)", text)
    seconds = float(found[1]) * (0.001 if found[2] == "ms" else 1.0) if found else float("inf")
    if seconds > 3600:
        raise ConfigError(
            f"--faults: delay is {text[:40]!r}: expected milliseconds or seconds, as in 50ms, up to an hour"
        )
    return seconds


class FaultyTransport:
    """A transport that applies faults to outgoing messages, answers included; see Transport.

    The stream decides message by message: the same messages in the same order meet the same faults. A message that
    is held back leaves when its time has come and the peer next sends or receives; at the end all leave.
    """

    def __init__(self, inner: Transport, faults: Faults, stream: Stream) -> None:
        self._inner, self._faults, self._stream = inner, faults, stream
        self._held: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self.authenticated = inner.authenticated

    def send(self, neighbour: int, message: bytes) -> bool:
        return self._suffer(message, lambda damaged: self._inner.send(neighbour, damaged))

    def answer(self, route: Hashable, message: bytes) -> bool:
        return self._suffer(message, lambda damaged: self._inner.answer(route, damaged))

    def _suffer(self, message: bytes, hand_over: Callable[[bytes], bool]) -> bool:
        faults, (drop, duplicate, reorder, corrupt, where) = self._faults, map(float, self._stream.uniform(5))
        self._release()
        if drop < faults.drop:
            return True
        if corrupt < faults.corrupt:
            message = damaged(message, where)
        late = faults.delay + (OVERTAKEN_SECONDS if reorder < faults.reorder else 0.0)
        delivered = True
        for _ in range(2 if duplicate < faults.duplicate else 1):
            if late:
                due = time.monotonic() + late
                heapq.heappush(self._held, (due, next(self._numbers), lambda: hand_over(message)))
            else:
                delivered = hand_over(message)
        return delivered

    def _release(self) -> None:
        while self._held and self._held[0][0] <= time.monotonic():
            heapq.heappop(self._held)[2]()

    def receive(self, timeout: float) -> Delivery | None:
        deadline = time.monotonic() + timeout
        while True:
            self._release()
            until = min(self._held[0][0], deadline) if self._held else deadline
            delivery = self._inner.receive(until - time.monotonic())
            if delivery is not None or until == deadline or time.monotonic() < until:
                return delivery

    def close(self) -> None:
        for _, _, hand_over in sorted(self._held, key=lambda held: held[:2]):
            hand_over()
        self._inner.close()

    def listen(self, address: str) -> str:
        return self._inner.listen(address)

    def connect(self, neighbour: int, address: str) -> None:
        self._inner.connect(neighbour, address)

    def opened(self) -> list[int]:
        return self._inner.opened()

    def connected(self) -> frozenset[int]:
        return self._inner.connected()

    def refused(self) -> Mapping[str, int]:
        return self._inner.refused()

    def identify(self, route: Hashable, neighbour: int) -> None:
        self._inner.identify(route, neighbour)

    def host_of(self, route: Hashable) -> str | None:
        return self._inner.host_of(route)

    def link_bytes(self) -> dict[int, LinkBytes] | None:
        return self._inner.link_bytes()


def damaged(message: bytes, where: float) -> bytes:
    """Flip a bit of a message; ``where`` is in [0, 1)."""
    at, damaged = int(where * 8 * len(message)), bytearray(message)
    damaged[at // 8] ^= 1 << at % 8
    return bytes(damaged)
