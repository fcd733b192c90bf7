"""What attackers do to a peer: strangers disconnect, flood and stall; insiders lie in each field of each message.

An attack is a generator: each step does a little, so that its caller sets the pace; closing it ends its connections.
The pace is moderate, at most 70 connections or 300 messages per second: attacks must not succeed by taking the
machine's time. Strangers have no key; insiders speak in a neighbour's name, with its key if there are keys.
"""

import resource
import socket
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from typing import Any
from zlib import crc32

import msgpack
import numpy as np
import zmq

from dslth import wire
from dslth.coding import codecs
from dslth.keys import Keys
from dslth.masks import BitMask
from dslth.seeds import Stream
from dslth.wire import Frames, Kind

__all__ = ["ATTACKS", "ELSEWHERE", "HOST", "Attack", "Canary", "Foe", "Seat", "lie"]

HOST, ELSEWHERE = "127.0.0.1", "127.0.0.2"
SAID = {False: 191, True: 801}
"""Bytes that a client sends up to its hello, and a few more, without keys and with: odd, and prime to 37."""
CROWD = 1024
FRAMES = 164_280
READY = b"\x04\x1c\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
Steps = Generator[None, None, None]


def lie(frames: Frames, **fields: int) -> Frames:
    """Change fields of a message's header, and seal it again."""
    header = wire.Header(*msgpack.unpackb(frames[0]))._replace(**fields)
    check = crc32(frames[1], crc32(msgpack.packb(list(header[:-1]))))
    return msgpack.packb(list(header._replace(check=check))), frames[1]


class Canary:
    """Ports that no peer should connect to, and a socket file; ``heard`` counts connections by host."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dslth-")
        self._sockets = {socket.create_server((host, 0)): host for host in (HOST, HOST, ELSEWHERE)}
        self.addresses = [f"tcp://{host}:{there.getsockname()[1]}" for there, host in self._sockets.items()]
        self.file = f"{self._folder.name}/socket"
        self._sockets[socket.socket(socket.AF_UNIX)] = "ipc"
        self.heard: Counter[str] = Counter()
        for there, host in self._sockets.items():
            if host == "ipc":
                there.bind(self.file)
                there.listen()
            there.setblocking(False)

    def listen(self) -> None:
        """Count new connections."""
        for there, host in self._sockets.items():
            with suppress(BlockingIOError):
                while True:
                    there.accept()[0].close()
                    self.heard[host] += 1

    def close(self) -> None:
        """Close the ports."""
        for there in self._sockets:
            there.close()
        self._folder.cleanup()


# --- an attacker's tools --------------------------------------------------------------------------------------------


@dataclass
class Foe:
    """An attacker's tools against one victim at ``port``. ``round`` is the victim's, as it reports it.

    ``turn`` and ``leaks`` count attempts over the whole run; ``did`` counts messages and connections.
    """

    victim: int
    port: int
    seat: "Seat"
    canary: Canary
    stream: Stream
    round: int = 0
    turn: int = 0
    leaks: int = 0
    did: Counter[str] = field(default_factory=Counter)

    def number(self, below: int) -> int:
        """Draw a number."""
        return self.stream.integer() % below

    def noise(self, size: int) -> bytes:
        """Draw bytes."""
        return self.stream.uniform(size).tobytes()[:size]

    def hello(self, round_: int | None = None, held: int | None = None, kind: Kind = Kind.HELLO, **lies: Any) -> Frames:
        """Write a hello that is true except for the lies."""
        me = wire.Hello(**(vars(self.seat.me) | lies))
        return wire.hello(kind, me, self.seat.peer, self.round if round_ is None else round_, held)

    def mask(self, round_: int, mask: BitMask | None = None) -> Frames:
        """Write a mask as a key frame: the seat's first one, unless another is given."""
        packed = (mask or self.seat.mask).pack()
        header = wire.mask_header(
            self.seat.me.digest, self.seat.peer, round_, packed, codecs.BITPACK.wire_id, 0, self.round
        )
        return header, packed

    @property
    def greeting(self) -> bytes:
        """What a ZMTP connection begins with."""
        mechanism = b"CURVE" if self.seat.keys else b"NULL"
        return b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)

    @contextmanager
    def connection(self, *, reset: bool = False) -> Iterator[socket.socket]:
        """Open a bare connection; at its end it is closed, or reset."""
        with socket.create_connection((HOST, self.port), timeout=1) as there:
            self.did["connections"] += 1
            if reset:
                there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            yield there

    @contextmanager
    def line(self, port: int | None = None, **options: int) -> Iterator[Callable[..., None]]:
        """Open an insider's connection, and yield a function that sends messages on it."""
        dealer = self.seat.socket(zmq.DEALER, self.victim)
        dealer.setsockopt(zmq.RECONNECT_IVL, -1)  # the pace is the attack's, not libzmq's
        for name, value in options.items():
            dealer.setsockopt(getattr(zmq, name), value)
        dealer.connect(f"tcp://{HOST}:{port or self.port}")
        self.did["connections"] += 1

        def say(*messages: Any) -> None:
            with suppress(zmq.Again):
                for frames in messages:
                    dealer.send_multipart(frames if type(frames) is list else [b"".join(frames)], zmq.NOBLOCK)
                    self.did["messages"] += 1
                while not options and dealer.poll(0):
                    dealer.recv_multipart()

        try:
            yield say
        finally:
            dealer.close()


class _Leak:
    """Forwards a limited number of a client's bytes to the victim, and all of its answers."""

    def __init__(self, foe: Foe) -> None:
        self._foe, self._ends = foe, ExitStack()
        self._listening = self._ends.enter_context(socket.create_server((HOST, 0)))
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self._client: socket.socket | None = None

    def __enter__(self) -> "_Leak":
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.close()

    def carry(self, most: int) -> int:
        """Forward up to ``most`` bytes that wait; return how many the victim got."""
        if self._client is None:
            with suppress(BlockingIOError):
                self._client = self._ends.enter_context(self._listening.accept()[0])
                self._client.setblocking(False)
                self._foe.leaks += 1
                reset = self._foe.leaks % 2 == 0
                self._there = self._ends.enter_context(self._foe.connection(reset=reset))
                self._there.setblocking(False)
                self._listening.close()  # the client cannot connect again
            return 0
        with suppress(BlockingIOError):
            if answer := self._there.recv(1 << 16):
                self._client.sendall(answer)
        with suppress(BlockingIOError):
            return self._there.send(self._client.recv(most))
        return 0


class Seat:
    """An attacker's place in the graph: it takes part until the run has begun, and is silent from then on.

    ``foes`` are its tools against its neighbours. ``routes`` lead to those that have connected to it.
    """

    def __init__(self, peer: int, me: wire.Hello, mask: BitMask, rounds: int, keys: Keys | None) -> None:
        self.peer, self.me, self.mask, self.rounds, self.keys = peer, me, mask, rounds, keys
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, 4 * CROWD)
        self.context.set(zmq.BLOCKY, 0)  # wait for nothing at the end
        self.foes: dict[int, Foe] = {}
        self.routes: dict[int, bytes] = {}
        self._dealers: dict[int, zmq.Socket[bytes]] = {}
        self.address = f"tcp://{HOST}:*"
        self.listen()

    def socket(self, kind: int, victim: int | None = None) -> "zmq.Socket[bytes]":
        """Make a socket with the seat's key, to connect to a victim, or to listen to all of them."""
        made = self.context.socket(kind)
        made.setsockopt(zmq.LINGER, 500)
        if self.keys:
            made.setsockopt(zmq.CURVE_PUBLICKEY, self.keys.public)
            made.setsockopt(zmq.CURVE_SECRETKEY, self.keys.secret)
            made.setsockopt(zmq.CURVE_SERVER, int(victim is None))
            if victim is not None:
                made.setsockopt(zmq.CURVE_SERVERKEY, self.keys.neighbours[victim])
        return made

    def listen(self) -> None:
        """Listen where the victims expect it; a port that was just closed is free again in a moment."""
        give_up = time.monotonic() + 5
        while True:
            self._router = self.socket(zmq.ROUTER)
            try:
                self._router.bind(self.address)
                self.address = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
                return
            except zmq.ZMQError:
                self._router.close()
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.01)

    def hang_up(self) -> None:
        """Break the victims' connections; they connect again."""
        self._router.close(100)
        self.routes.clear()
        self.listen()

    def attend(self, *, joining: bool = False) -> None:
        """Read the victims' messages, and answer them until the run has begun."""
        for foe in self.foes.values() if joining else ():
            if foe.victim not in self._dealers:
                dealer = self._dealers[foe.victim] = self.socket(zmq.DEALER, foe.victim)
                dealer.connect(f"tcp://{HOST}:{foe.port}")
                dealer.send(b"".join(foe.hello()))
        while self._router.poll(0):
            route, message = self._router.recv_multipart()
            with suppress(wire.Refused):
                header = wire.read_header(wire.split(message), wire.max_payload(self.me.sizes))
                foe = self.foes[header.sender]
                foe.round, self.routes[header.sender] = header.round, route
                if joining and header.kind == Kind.HELLO:
                    self.answer(foe, foe.hello(0, kind=Kind.WELCOME))
        for dealer in self._dealers.values():
            while dealer.poll(0):
                dealer.recv_multipart()

    def answer(self, foe: Foe, *messages: Any) -> None:
        """Send messages on the connection that a victim has made to this seat."""
        with suppress(zmq.ZMQError):
            for frames in messages if foe.victim in self.routes else ():
                self._router.send_multipart([self.routes[foe.victim], b"".join(frames)], zmq.NOBLOCK)
                foe.did["messages"] += 1

    def close(self) -> None:
        """Go."""
        self.context.destroy(linger=0)


@dataclass(frozen=True)
class Attack:
    """One way to attack, with ``rate`` steps per second at each victim; ``seconds``: how long until it shows effect."""

    name: str
    steps: Callable[[Foe], Steps]
    rate: float
    seconds: float


ATTACKS: dict[str, Attack] = {}
"""All attacks, by name."""


def attack(rate: float, seconds: float = 4.0) -> Callable[[Callable[[Foe], Steps]], Callable[[Foe], Steps]]:
    """Register a generator as an attack."""

    def take(steps: Callable[[Foe], Steps]) -> Callable[[Foe], Steps]:
        name = steps.__name__.replace("_", " ")
        ATTACKS[name] = Attack(name, steps, rate, seconds)
        return steps

    return take


def saying(rate: float, seconds: float = 4.0) -> Callable[[Callable[[Foe, int], Frames]], Callable[[Foe], Steps]]:
    """Register as an attack a message that an insider sends repeatedly on connections that have said hello."""

    def take(message: Callable[[Foe, int], Frames]) -> Callable[[Foe], Steps]:
        @wraps(message)
        def steps(foe: Foe) -> Steps:
            while True:
                with foe.line() as say:
                    say(foe.hello())
                    for _ in range(50):
                        foe.turn += 1
                        say(message(foe, foe.turn))
                        yield

        return attack(rate, seconds)(steps)

    return take


# --- strangers ------------------------------------------------------------------------------------------------------


@attack(20)
def garbage(foe: Foe) -> Steps:
    """Send what is not ZMTP, or only begins like it; close, reset, or leave it open for a while."""
    while True:
        with ExitStack() as some_stay:
            for _ in range(20):
                foe.turn += 1
                with suppress(OSError), ExitStack() as connection:
                    there = connection.enter_context(foe.connection(reset=foe.turn % 3 == 0))
                    words = b"GET / HTTP/1.1\r\n\r\n", foe.greeting[: foe.number(65)], foe.greeting + foe.noise(200)
                    there.sendall(words[foe.number(3)] + foe.noise(foe.number(300)))
                    if foe.turn % 3 == 1:
                        some_stay.push(connection.pop_all())
                yield


@attack(50)
def hasty(foe: Foe) -> Steps:
    """Connect, leave, and connect again at once."""
    while True:
        with suppress(OSError), foe.connection(reset=foe.number(2) == 0):
            pass
        yield


@attack(50)
def half_open(foe: Foe) -> Steps:
    """Connect and send nothing, ever more often."""
    with ExitStack() as held:
        while True:
            with suppress(OSError):
                held.enter_context(foe.connection())
            yield


@attack(50)
def pouring(foe: Foe) -> Steps:
    """Send a message that does not end; with keys, a stranger sends a command that does not end."""
    begin = foe.greeting + (b"" if foe.seat.keys else READY)
    frame = struct.pack(">BQ", 6 if foe.seat.keys else 3, 1 << 13) + bytes(1 << 13)
    while True:
        with suppress(OSError), foe.connection() as there:
            there.sendall(begin)
            for _ in range(100):
                there.sendall(4 * frame)
                yield
        yield


# --- insiders: how they connect -------------------------------------------------------------------------------------


@attack(200, 12)
def broken_off(foe: Foe) -> Steps:
    """Stop after each byte of greeting, handshake and hello in turn; then close, or reset."""
    longest = SAID[bool(foe.seat.keys)]
    while True:
        with suppress(OSError), _Leak(foe) as leak, foe.line(leak.port, LINGER=0) as say:
            say(foe.hello(), (b"ab",), (b"ab",))
            left = 1 + 37 * foe.leaks % longest  # all in turn; any few of them are early and late ones
            for _ in range(40):
                left -= leak.carry(left)
                if not left:
                    break
                yield
        yield


@attack(50, 15)
def dribbling(foe: Foe) -> Steps:
    """Send a byte now and then, on eight connections."""
    while True:
        with suppress(OSError), ExitStack() as held:
            leaks = [held.enter_context(_Leak(foe)) for _ in range(8)]
            for leak in leaks:
                held.enter_context(foe.line(leak.port, LINGER=0))(foe.hello())
            for _ in range(SAID[bool(foe.seat.keys)]):
                for leak in leaks:
                    leak.carry(1)
                yield
        yield


@attack(5, 8)
def bursts(foe: Foe) -> Steps:
    """Send sixty messages of two bytes and disconnect; without keys also by a reset."""
    while True:
        foe.turn += 1
        if foe.seat.keys or foe.turn % 2:
            with foe.line(LINGER=500) as say:
                say(*[(b"ab",)] * 60)
        else:
            with suppress(OSError), foe.connection(reset=True) as there:
                there.sendall(foe.greeting + READY + 60 * b"\0\2ab")
        yield


@attack(5, 8)
def answering_bursts(foe: Foe) -> Steps:
    """Send sixty messages of two bytes to those that have connected, hang up, and listen again."""
    while True:
        foe.seat.answer(foe, *[(b"ab",)] * 60)
        yield
        foe.seat.hang_up()
        for _ in range(20):
            yield


@attack(10, 8)
def flood(foe: Foe) -> Steps:
    """Send more than can be used, small and large, on a connection that has said hello."""
    while True:
        with foe.line() as say:
            say(foe.hello())
            for _ in range(200):
                say(*[(b"ab",), (foe.noise(20), bytes(1000)), foe.mask(foe.round + 5000)] * 10)
                yield


@attack(4)
def empty_frames(foe: Foe) -> Steps:
    """Send a message of very many empty frames."""
    while True:
        with foe.line() as say:
            say(foe.hello(), [b""] * FRAMES)
            for _ in range(4):
                yield


@attack(50, 8)
def slow_reader(foe: Foe) -> Steps:
    """Ask again and again and never read an answer."""
    with foe.line(RCVHWM=1, RCVBUF=2048) as say:
        while True:
            say(foe.hello(), foe.hello(0))
            yield


@attack(70, 15)
def crowd(foe: Foe) -> Steps:
    """Open as many connections as a process may have descriptors, and say hello on each."""
    with ExitStack() as held:
        for _ in range(min(CROWD, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 5)):
            held.enter_context(foe.line(RCVHWM=4))(foe.hello())
            yield
        while True:
            yield


# --- insiders: what they say ----------------------------------------------------------------------------------------


def _rounds(foe: Foe) -> tuple[int, ...]:
    last = foe.seat.rounds
    return 0, foe.round + 1, foe.round + 3, foe.round + 40, last - 10, last - 1, last, 2**31, 2**32 - 1


@saying(5)
def lying_rounds(foe: Foe, turn: int) -> Frames:
    """Claim to be in round 0, ahead, at the end, past it."""
    return lie(foe.hello(), round=_rounds(foe)[turn % 9])


@saying(5)
def far_ahead(foe: Foe, turn: int) -> Frames:
    """Claim, again and again, to be nearly done."""
    return lie(foe.hello(), round=foe.seat.rounds - 10)


@saying(30)
def holding_nothing(foe: Foe, turn: int) -> Frames:
    """Claim to be in round 0 and to hold nothing, and so ask for every mask that is kept."""
    return foe.hello(0)


@saying(30)
def lying_held(foe: Foe, turn: int) -> Frames:
    """Claim to hold what was never sent, or what was sent long ago."""
    return lie(foe.hello(), held=(0, 1, 2, foe.round, foe.round + 1, 2**32 - 1)[turn % 6])


@saying(20, 8)
def addresses(foe: Foe, turn: int) -> Frames:
    """Claim changing addresses, others' ports, and addresses that do not exist."""
    places = [*foe.canary.addresses, f"ipc://{foe.canary.file}", "ipc:///nowhere/socket", "inproc://x", "x" * 255]
    places += ["tcp://*:1", "udp://127.0.0.1:9", "tcp://127.0.0.1:0", "tcp://[::1]:9", "tcp://127.0.0.1:99999"]
    places += ["tcp://no-such-host.invalid:9"]
    return foe.hello(address=places[turn % 3 if turn % 4 else foe.number(len(places))])


@saying(20)
def other_hellos(foe: Foe, turn: int) -> Frames:
    """Claim another run, other sizes, other ones; welcome and refuse peers that did not say hello."""
    sizes, ones, most = foe.seat.me.sizes, foe.seat.me.ones, (2**32 - 1,) * 3000
    lies: list[dict[str, Any]] = [{"digest": foe.noise(16)}, {"ones": (0,) * len(sizes)}, {"ones": sizes}]
    lies += [
        {"ones": ones[::-1]},
        {"sizes": most, "ones": most},
        {"sizes": (), "ones": ()},
        {"sizes": (1,), "ones": (1,)},
    ]
    if turn % 8 == 7:
        return wire.refusal(foe.seat.me.digest, foe.seat.peer, foe.round, {f"{n}": "x" * 60 for n in range(200)})
    return foe.hello(kind=Kind(turn // 8 % 2), **lies[turn % 8])


@saying(30)
def masks(foe: Foe, turn: int) -> Frames:
    """Send masks of any round, depth and codec, full, empty and true."""
    full, empty = (BitMask.from_arrays(np.full(n, kept) for n in foe.seat.me.sizes) for kept in (True, False))
    round_ = (*_rounds(foe), foe.round, foe.round)[turn % 11]
    true = lie(foe.mask(0, (full, empty, None)[turn % 3]), round=round_)
    kinds = true, lie(true, codec=foe.number(256)), lie(true, depth=foe.number(300)), (true[0], foe.noise(5000))
    return kinds[turn // 3 % 4]


@saying(30)
def byes(foe: Foe, turn: int) -> Frames:
    """Leave and come back, over and over."""
    bye = wire.bye(foe.seat.me.digest, foe.seat.peer, foe.round, heard=turn % 4 == 1)
    return lie(bye, round=_rounds(foe)[turn % 9]) if turn % 2 else foe.hello()


@saying(5, 8)
def teasing(foe: Foe, turn: int) -> Frames:
    """Announce to take part, do so now and then, and stay away."""
    return foe.mask(foe.round + 1) if turn % 5 == 0 else foe.hello()


@attack(10)
def answers(foe: Foe) -> Steps:
    """Lie to those that have connected, in answers: welcomes, refusals, masks and byes."""
    while True:
        foe.turn += 1
        lies = {"round": _rounds(foe)[foe.turn % 9], "held": (0, 1, 2**32 - 1)[foe.turn % 3]}
        place = foe.canary.addresses[foe.turn % 3]
        welcome = lie(foe.hello(kind=Kind.WELCOME, address=place if foe.turn % 4 == 0 else ""), **lies)
        bye = wire.bye(foe.seat.me.digest, foe.seat.peer, foe.round)
        refusal = wire.refusal(foe.seat.me.digest, foe.seat.peer, foe.round, {"seed": "another"})
        foe.seat.answer(foe, welcome, lie(foe.mask(foe.round), round=lies["round"]), bye, refusal, (foe.noise(9),))
        yield
