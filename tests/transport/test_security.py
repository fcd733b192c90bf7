"""Keys, who is admitted with them, what an eavesdropper sees, what strangers can take: over real sockets."""

import contextlib
import fcntl
import os
import select
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
import time

import psutil
import pytest
import zmq

from dslth import keys, wire
from dslth.config import NetworkConfig
from dslth.errors import SecurityError
from dslth.runs.summary import PeerSummary
from dslth.transport import guard, zeromq
from dslth.transport.zeromq import ZeroMqTransport
from live import digests, printed, summary_of
from tap import Tap, free_ports

LARGEST = 1 << 14
HELD_FRAMES = 60_000
"""Empty frames that take as many bytes as a connection may have waiting."""
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


# --- keys in files --------------------------------------------------------------------------------------------------


def test_private_keys_are_private_from_the_start_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        keys.make(tmp_path / "k", range(2))
    finally:
        os.umask(before)
    for peer in range(2):
        assert stat.S_IMODE((tmp_path / f"k/private/peer-{peer}.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "k/private").stat().st_mode) == 0o700
    mine = keys.load(tmp_path / "k", 0, [1])
    assert (tmp_path / "k/public/peer-1.key").read_text().count(mine.neighbours[1].decode()) == 1
    assert mine.secret.decode() not in (tmp_path / "k/public/peer-0.key").read_text()
    assert mine.secret.decode() not in repr(mine)


def test_keys_are_never_overwritten_and_all_are_checked_before_any_is_made(tmp_path):
    keys.make(tmp_path, [1])
    before = (tmp_path / "private/peer-1.key").read_bytes()
    with pytest.raises(SecurityError, match="is there already"):
        keys.make(tmp_path, range(3))
    assert (tmp_path / "private/peer-1.key").read_bytes() == before
    assert not (tmp_path / "private/peer-0.key").exists()
    keys.ensure(tmp_path, 1)
    assert (tmp_path / "private/peer-1.key").read_bytes() == before
    keys.ensure(tmp_path, 2)
    assert keys.load(tmp_path, 2, [1]).neighbours.keys() == {1}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda k: (k / "private/peer-0.key").unlink(), "cannot read the key"),
        (lambda k: (k / "public/peer-1.key").unlink(), "cannot read the key"),
        (lambda k: (k / "private/peer-0.key").chmod(0o640), "chmod 600"),
        (lambda k: (k / "private/peer-0.key").write_text("nonsense\n"), "damaged"),
        (lambda k: (k / "public/peer-1.key").write_bytes(bytes(range(256))), "damaged"),
        (lambda k: (k / "public/peer-1.key").write_text('public-key = "short"\n'), "damaged"),
        (
            lambda k: (k / "private/peer-0.key").write_bytes((k / "public/peer-0.key").read_bytes()),
            "holds no secret key",
        ),
        (lambda k: (k / "public/peer-1.key").write_bytes((k / "public/peer-2.key").read_bytes()), "the same key"),
        (lambda k: (k / "public/peer-1.key").write_bytes((k / "public/peer-0.key").read_bytes()), "the same key"),
    ],
)
def test_a_key_that_cannot_serve_is_one_clear_line(tmp_path, spoil, words):
    keys.make(tmp_path, range(3))
    spoil(tmp_path)
    with pytest.raises(SecurityError, match=words) as caught:
        keys.load(tmp_path, 0, [1, 2])
    assert len(str(caught.value).splitlines()) == 1


def test_a_lost_public_half_is_written_again_and_nothing_else(tmp_path, commands, topology_file):
    file = topology_file(network={"base_port": 47100, "security": "curve"})
    folder = tmp_path / "small.keys"
    assert "3 key pairs" in one_line(commands.run("dslth", "keys", "make", file), 0)
    whole = {path: path.read_bytes() for path in folder.rglob("*.key")}
    half = folder / "public" / "peer-1.key"
    half.unlink()
    assert "peers 1" in one_line(commands.run("dslth", "keys", "make", file), 0)
    assert {path: path.read_bytes() for path in folder.rglob("*.key")} == whole
    half.unlink()
    keys.ensure(folder, 1)
    assert {path: path.read_bytes() for path in folder.rglob("*.key")} == whole
    half.unlink()
    (folder / "private" / "peer-1.key").write_text(whole[half].decode())
    assert "holds no secret key" in one_line(commands.run("dslth", "keys", "make", file), 14)


def test_public_keys_are_waited_for_until_they_are_whole(tmp_path):
    keys.make(tmp_path, [1])
    late = tmp_path / "public/peer-1.key"
    whole = late.read_bytes()
    late.write_bytes(whole[:40])
    waiting = threading.Thread(target=keys.wait_for, args=(tmp_path, [1], 60, threading.Event()))
    waiting.start()
    with pytest.raises(SecurityError, match="peers 1, 2 in"):
        keys.wait_for(tmp_path, [1, 2], 0, threading.Event())
    assert waiting.is_alive()
    late.write_bytes(whole)
    waiting.join(60)
    assert not waiting.is_alive()


def test_waiting_for_keys_ends_when_asked_to(tmp_path):
    stop = threading.Event()
    stop.set()
    keys.wait_for(tmp_path, [1], 3600, stop)


# --- who needs them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("tcp://127.0.0.1:47100", True),
        ("tcp://127.3.2.1:47100", True),
        ("tcp://[::1]:47100", True),
        ("tcp://localhost:47100", True),
        ("tcp://0.0.0.0:47100", False),
        ("tcp://*:47100", False),
        ("tcp://[::]:47100", False),
        ("tcp://10.0.0.7:47100", False),
        ("tcp://peer-3:47100", False),
        ("tcp://127.0.0.1.example.org:47100", False),
    ],
)
def test_only_loopback_does_without_keys_unless_told(address, loopback):
    assert keys.is_loopback(address) == loopback
    near = "tcp://127.0.0.1:1"
    assert keys.needed(NetworkConfig(), [near, address]) == (not loopback)
    assert keys.needed(NetworkConfig(security="curve"), [near, address])
    assert not keys.needed(NetworkConfig(security="none"), [near, address])


def one_line(done, code):
    assert done.returncode == code, (done.returncode, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_commands_ask_for_keys_use_them_and_do_without_when_told(commands, topology_file, tmp_path):
    file = topology_file(network={"host": "0.0.0.0", "base_port": free_ports(3)}, rounds=2)
    for line in (
        one_line(commands.run("dslth", "run", "-t", file, "--out", "none"), 14),
        one_line(commands.run("dslth-peer", "--id", 0, "-t", file), 14),
        one_line(commands.run("dslth-peer", "--id", 0, "-t", topology_file("l.yaml"), "--listen", "tcp://*:1"), 14),
    ):
        assert "dslth keys make FILE" in line
        assert "--insecure" in line
    assert not (tmp_path / "none").exists()

    assert "3 key pairs" in one_line(commands.run("dslth", "keys", "make", file), 0)
    assert "is there already" in one_line(commands.run("dslth", "keys", "make", file), 14)
    done = commands.run("dslth", "run", "-t", file, "--json", "--out", "safe")
    safe = printed(done)
    assert done.stderr == ""
    assert [peer.refused for peer in safe.peers] == [{}] * 3

    done = commands.run("dslth", "run", "-t", file, "--json", "--out", "clear", "--insecure")
    assert "warning: no keys" in one_line(done, 0)
    assert digests(printed(done)) == digests(safe)


def test_peers_that_share_a_folder_make_their_own_keys_and_meet(commands, topology_file, tmp_path):
    file = topology_file(network={"base_port": free_ports(3)}, rounds=2)
    peers = [
        commands.start("dslth-peer", "--id", i, "-t", file, "--out", "run", "--keys", "k", "--json") for i in range(3)
    ]
    for process in peers:
        assert summary_of(process, PeerSummary).refused == {}
    assert sorted(path.name for path in (tmp_path / "k/private").iterdir()) == [f"peer-{i}.key" for i in range(3)]


def test_no_key_is_in_a_report_a_manifest_or_a_topology(commands, topology_file, tmp_path):
    done = commands.run("dslth", "run", "-t", topology_file(), "--curve", "--out", "run")
    assert done.returncode == 0, done.stderr
    secrets = [keys.load(tmp_path / "run/keys", i, []).secret for i in range(3)]
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file() and "private" not in path.parts:
            assert not any(secret in path.read_bytes() for secret in secrets), path


# --- admission ------------------------------------------------------------------------------------------------------


@pytest.fixture
def transports():
    made = []

    def make(*arguments, listen="tcp://127.0.0.1:*"):
        made.append(ZeroMqTransport(LARGEST, *arguments))
        return made[-1], made[-1].listen(listen)

    yield make
    for transport in made:
        transport.close()


@pytest.fixture
def pairs(tmp_path):
    keys.make(tmp_path / "pairs", range(4))
    return lambda peer, *neighbours: keys.load(tmp_path / "pairs", peer, neighbours)


@pytest.fixture
def clients():
    context, made = zmq.Context(), []

    def make(address, public=None, secret=None, server=None, *, patient=False):
        client = context.socket(zmq.DEALER)
        client.setsockopt(zmq.LINGER, 0)
        client.setsockopt(zmq.RECONNECT_IVL, 100 if patient else -1)
        if public:
            client.curve_publickey, client.curve_secretkey, client.curve_serverkey = public, secret, server
        client.connect(address)
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()
    context.term()


def reach(a, neighbour, address):
    """Connect a transport to a neighbour, and wait until it can send there."""
    a.connect(neighbour, address)
    while neighbour not in a.connected():
        a.receive(0.05)


def next_from(transport, seconds=30):
    deadline = time.monotonic() + seconds
    while (delivery := transport.receive(0.05)) is None:
        assert time.monotonic() < deadline, "nothing came"
    return delivery


@pytest.mark.parametrize("reason", ["no-key", "unknown-key", "bad-handshake"])
def test_without_the_right_keys_a_connection_is_refused_and_counted(transports, pairs, clients, reason):
    t, address = transports(pairs(0, 1, 2))
    server = pairs(0).public
    match reason:
        case "no-key":
            stranger = clients(address)
        case "unknown-key":  # a peer of the same run that is not a neighbour
            stranger = clients(address, pairs(3).public, pairs(3).secret, server)
        case "bad-handshake":  # takes this peer for another one
            stranger = clients(address, pairs(1).public, pairs(1).secret, pairs(2).public)
    stranger.send(b"header")
    wait_for(t.refused)
    assert t.refused() == {reason: 1}
    assert t.receive(0) is None
    friend = clients(address, pairs(1).public, pairs(1).secret, server)
    friend.send(b"header")
    assert next_from(t).speaker == 1
    assert t.refused() == {reason: 1}


def test_without_keys_the_same_client_is_let_in_and_is_nobody(transports, clients):
    t, address = transports()
    assert not t.authenticated
    clients(address).send(b"header")
    assert next_from(t).speaker is None


def test_the_key_names_the_sender_not_the_message(transports, pairs, clients):
    t, address = transports(pairs(0, 1, 2))
    assert t.authenticated
    one = clients(address, pairs(1).public, pairs(1).secret, pairs(0).public)
    one.send(b"I am peer 2")
    assert next_from(t).speaker == 1
    two = clients(address, pairs(2).public, pairs(2).secret, pairs(0).public)
    two.send(b"I am peer 2")
    assert next_from(t).speaker == 2


def test_an_answer_comes_from_the_owner_of_the_addresss_key(transports, pairs):
    a, _ = transports(pairs(0, 1))
    b, address = transports(pairs(1, 0))
    reach(a, 1, address)
    assert a.send(1, b"question")
    question = next_from(b)
    assert question.speaker == 0
    assert b.answer(question.route, b"answer")
    answer = next_from(a)
    assert (answer.speaker, answer.answer_of, answer.message) == (1, 1, b"answer")
    c, elsewhere = transports(pairs(2, 0))  # another peer at a neighbour's address is not believed
    a.connect(1, elsewhere)
    wait_for(c.refused)
    assert not a.send(1, b"question")
    assert a.connected() == frozenset()
    assert c.receive(0) is None


def test_a_peer_refuses_a_message_in_the_name_of_another_than_the_keys_owner(
    commands, topology_file, tmp_path, clients
):
    base = free_ports(3)
    keys.make(tmp_path / "k", range(3))
    for owner, refused in ((1, "impostor 1"), (2, "no-hello 1")):
        mine = keys.load(tmp_path / "k", owner, [0])
        client = clients(f"tcp://127.0.0.1:{base}", mine.public, mine.secret, mine.neighbours[0], patient=True)
        client.send(b"".join(wire.bye(bytes(16), 2, 0)))
        file = topology_file(network={"base_port": base})
        arguments = ("--id", 0, "-t", file, "--keys", "k", "--join-timeout", 5)
        done = commands.run("dslth-peer", *arguments)
        assert done.returncode == 9, done.stderr
        assert f"(refused so far: {refused})" in done.stderr


# --- what an eavesdropper sees --------------------------------------------------------------------------------------


def tapped(commands, topology_file, security):
    """Run three peers whose traffic passes taps; the taps, and the digests of the peers' last masks."""
    base = free_ports(3)
    taps = [Tap(base + peer) for peer in range(3)]
    try:
        network = {"addresses": [f"127.0.0.1:{tap.port}" for tap in taps], "security": security}
        file = topology_file(f"{security}.yaml", network=network, codec="bitpack", rounds=2)
        if security == "curve":
            assert commands.run("dslth", "keys", "make", file).returncode == 0
        peers = []
        for i in range(3):
            listen = f"tcp://127.0.0.1:{base + i}"
            arguments = ("--id", i, "-t", file, "--out", security, "--listen", listen, "--json")
            peers.append(commands.start("dslth-peer", *arguments))
        digests = [summary_of(process, PeerSummary).mask_digest for process in peers]
    finally:
        for tap in taps:
            tap.close()
    return taps, digests


def test_a_tap_between_peers_sees_masks_and_headers_only_without_keys(commands, topology_file):
    open_taps, open_digests = tapped(commands, topology_file, "none")
    curve_taps, curve_digests = tapped(commands, topology_file, "curve")
    assert curve_digests == open_digests  # the same masks were sent
    in_clear, encrypted = (
        b"".join(bytes(stream) for tap in taps for stream in tap.streams) for taps in (open_taps, curve_taps)
    )
    frames = [part for tap in open_taps for message in tap.frames() for part in wire.split(message)]
    size = (64 * 256 + 256 * 128 + 128 * 10) // 8
    pieces = [frame[at : at + 32] for frame in frames if len(frame) == size for at in range(0, size - 32, 32)]
    pieces += [frame for frame in frames if 12 < len(frame) <= wire.MAX_HEADER]
    assert len(pieces) > 2000
    assert all(piece in in_clear for piece in pieces)
    assert not any(piece in encrypted for piece in pieces)
    assert len(encrypted) > len(in_clear)


# --- what strangers can take ----------------------------------------------------------------------------------------

ENDLESS, MOST = 1 << 30, 1 << 28
"""Bytes that a stranger would pour, and that a peer may hold of them at most, on a machine busy with other tests."""


def stranger(address):
    """A raw connection that has shaken hands as a libzmq client without keys would."""
    raw = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
    raw.sendall(GREETING + b"\x04" + bytes([len(READY)]) + READY)
    theirs = b""
    while len(theirs) < 66 or len(theirs) < 66 + theirs[65]:  # a greeting, and a command with its length
        theirs += raw.recv(4096)
    return raw


def pour(raw, most):
    """Send frames of a message that never ends; gives the bytes that went until the connection was cut off."""
    frame = b"\x03" + struct.pack(">Q", 4096) + bytes(4096)
    sent = 0
    with contextlib.suppress(OSError):
        while sent < most:
            raw.sendall(frame)
            sent += len(frame)
    return sent


def test_a_message_that_never_ends_is_cut_off_while_the_peer_is_busy(transports):
    t, address = transports()
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(5):
        with stranger(address) as raw:
            sent = pour(raw, ENDLESS)
        assert sent < MOST
    assert process.memory_info().rss - before < MOST
    assert t.refused() == {"flood": 5}
    assert t.receive(0) is None


def test_a_neighbour_with_all_that_may_wait_for_a_busy_peer_is_not_cut_off(transports):
    a, _ = transports()
    b, address = transports()
    reach(a, 1, address)
    assert a.send(1, b"hello")
    b.identify(next_from(b).route, 1)
    waiting = guard.PATIENCE * zeromq.HELD - 4
    for _ in range(waiting):
        wait_for(lambda: a.send(1, bytes(LARGEST)))
    (accepted,) = b._guard._open.values()
    wait_for(lambda: accepted.connection.taken > waiting * LARGEST)
    with stranger(address) as raw:
        pour(raw, ENDLESS)
    wait_for(b.refused)  # so it was looked at
    assert b.refused() == {"flood": 1}
    for _ in range(waiting):
        assert len(next_from(b).message) == LARGEST
    assert a.connected() == {1}


def test_a_neighbour_that_spoke_before_the_monitor_told_of_it_is_no_stranger():
    with contextlib.ExitStack() as stack, zmq.Context() as context, socket.create_server(("127.0.0.1", 0)) as server:
        tell, monitor = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        tell.bind("inproc://monitor")
        monitor.connect("inproc://monitor")
        watch = guard.Guard(monitor, server.getsockname()[1], 1 << 20, keys=False, neighbours=0)
        strangers = 10
        ends = []
        for _ in range(guard.STRANGERS + strangers + 1):
            ends.append(stack.enter_context(socket.create_connection(server.getsockname())))
            fd = stack.enter_context(server.accept()[0]).fileno()
            if len(ends) == 1:
                watch.identified(fd, 1)
            tell.send_multipart([struct.pack("=hi", zmq.EVENT_ACCEPTED, fd), b"tcp://"])
        tell.send_multipart([struct.pack("=hi", zmq.EVENT_MONITOR_STOPPED, 0), b"tcp://"])
        watch.join()
        tell.close(0)
        assert watch.refused() == {"too-many-connections": strangers}
        ends[0].setblocking(False)
        with pytest.raises(BlockingIOError):  # open still
            ends[0].recv(1)


def test_a_thousand_connections_leave_room_for_a_neighbour(transports):
    t, address = transports()
    a, _ = transports()
    with contextlib.ExitStack() as crowd:
        first = crowd.enter_context(stranger(address))
        reach(a, 1, address)
        assert a.send(1, b"hello")
        t.identify(next_from(t).route, 1)
        for _ in range(300):
            crowd.enter_context(stranger(address))
        wait_for(lambda: t.refused().get("too-many-connections", 0) >= 301 - guard.STRANGERS)
        assert t.refused() == {"too-many-connections": 301 - guard.STRANGERS}
        first.settimeout(30)
        with contextlib.suppress(ConnectionError):
            while first.recv(4096):  # its greeting, then the end: the oldest goes
                pass
        assert a.send(1, b"still here")
        assert next_from(t).message == b"still here"


BUSY_PEER = """
import sys
from dslth.transport.zeromq import ZeroMqTransport

t = ZeroMqTransport(1 << 14)
print(t.listen("tcp://127.0.0.1:*"), flush=True)
for address in iter(sys.stdin.readline, "\\n"):
    t.connect(1, address.strip())
    while not t.connected():
        t.receive(0.05)
    print("there", flush=True)
print("busy", flush=True)
sys.stdin.readline()
messages = 0
while t.receive(1.0):
    messages += 1
print(messages, flush=True)
t.close()
"""
PING = b"\x04\x07\x04PING\x00\x0a"


@pytest.fixture
def busy_peer():
    """A peer in a process of its own, which an assertion of libzmq would end; it takes nothing in while it is busy."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY_PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def say(line=""):
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    process.say = say
    yield process
    process.kill()
    process.communicate()


def break_off(raw, words):
    """Say something and end the connection with a reset, before it is read."""
    raw.sendall(words)
    wait_for(lambda: fcntl.ioctl(raw, termios.TIOCOUTQ, bytes(4)) == bytes(4))  # so that no message is lost with it
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


@pytest.mark.parametrize("last_word", [b"", PING, PING + b"\x00\x02ab"], ids=["nothing", "ping", "ping-and-more"])
def test_connections_that_break_off_while_a_peer_is_busy_do_not_end_it(busy_peer, last_word):
    address = busy_peer.stdout.readline().strip()
    assert busy_peer.say() == "busy"
    for _ in range(5):
        break_off(stranger(address), 60 * b"\x00\x02ab" + last_word)
    assert int(busy_peer.say()) == 5 * (60 + last_word.count(b"ab"))
    assert busy_peer.wait(30) == 0


def test_a_neighbour_that_breaks_off_while_a_peer_is_busy_does_not_end_it(busy_peer):
    busy_peer.stdout.readline()
    with socket.create_server(("127.0.0.1", 0)) as server:
        busy_peer.stdin.write(f"tcp://127.0.0.1:{server.getsockname()[1]}\n")
        busy_peer.stdin.flush()
        raw, _ = server.accept()
        raw.sendall(GREETING + b"\x04" + bytes([len(READY)]) + READY.replace(b"DEALER", b"ROUTER"))
        assert busy_peer.stdout.readline() == "there\n"
        assert busy_peer.say() == "busy"
        break_off(raw, 60 * b"\x00\x02ab" + PING)
    assert int(busy_peer.say()) == 60
    assert busy_peer.wait(30) == 0


def test_of_a_message_of_many_empty_frames_only_the_first_are_kept(transports):
    t, address = transports()
    process = psutil.Process()
    many = HELD_FRAMES
    with stranger(address) as raw:
        raw.sendall(many * b"\x01\x00" + b"\x00\x00")
        (accepted,) = wait_for(lambda: list(t._guard._open.values()))
        wait_for(lambda: accepted.connection.taken >= 2 * many)
        before = process.memory_info().rss
        assert next_from(t).message is None
        assert process.memory_info().rss - before < 64 << 20


def test_a_neighbour_has_no_more_than_two_connections(transports):
    t, address = transports()
    with contextlib.ExitStack() as crowd:
        for _ in range(50):
            crowd.enter_context(stranger(address)).sendall(b"\x00\x05hello")
            t.identify(next_from(t).route, 1)
        wait_for(lambda: t.refused() == {"too-many-connections": 50 - guard.PER_NEIGHBOUR})
        wait_for(lambda: len(t._guard._open) == guard.PER_NEIGHBOUR)


def test_what_answers_at_a_neighbours_address_is_bounded_too(transports):
    a, _ = transports()
    process = psutil.Process()
    with socket.create_server(("127.0.0.1", 0)) as server:
        a.connect(1, f"tcp://127.0.0.1:{server.getsockname()[1]}")
        raw, _ = server.accept()
        with raw:
            raw.sendall(GREETING + b"\x04" + bytes([len(READY)]) + READY.replace(b"DEALER", b"ROUTER"))
            wait_for(lambda: a.receive(0.01) or a.connected())
            before = process.memory_info().rss
            assert pour(raw, ENDLESS) < MOST
    assert process.memory_info().rss - before < MOST
    assert a.refused() == {"flood": 1}


def test_each_garbage_connection_is_counted(transports):
    t, address = transports()
    where = ("127.0.0.1", int(address.rpartition(":")[2]))
    kinds = [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03" + bytes(range(256)), os.urandom(200)]
    for i in range(1000):
        with socket.create_connection(where) as garbage, contextlib.suppress(OSError):
            garbage.sendall(kinds[i % len(kinds)])
    wait_for(lambda: sum(t.refused().values()) >= 1000)
    assert sum(t.refused().values()) == 1000
    assert set(t.refused()) <= {"bad-handshake", "broken-off", "too-many-connections"}


def test_a_slow_handshake_ends(transports, monkeypatch):
    monkeypatch.setattr(zeromq, "HANDSHAKE_MS", 200)
    t, address = transports()
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as loris:
        with contextlib.suppress(ConnectionError):
            for byte in GREETING[:40]:  # a byte at a time, and never a whole greeting
                loris.sendall(bytes([byte]))
                select.select([], [], [], 0.02)
        wait_for(t.refused, seconds=15)
    assert t.refused() == {"bad-handshake": 1}


def test_attacks_on_a_running_peer_change_no_mask_and_are_counted(commands, topology_file, tmp_path):
    base = free_ports(3)
    file = topology_file(network={"base_port": base}, rounds=8)
    peers = [commands.start("dslth-peer", "--id", i, "-t", file, "--out", "run", "--json") for i in range(2)]
    address = f"tcp://127.0.0.1:{base}"
    wait_for(lambda: _listens(base))
    process = psutil.Process(peers[0].pid)
    before = process.memory_info().rss
    with contextlib.ExitStack() as slow:
        for _ in range(10):
            slow.enter_context(stranger(address)).sendall(b"\x03" + struct.pack(">Q", 100) + b"slow")
        for _ in range(3):
            with stranger(address) as raw:
                assert pour(raw, ENDLESS) < MOST
        for _ in range(1000):
            with socket.create_connection(("127.0.0.1", base)) as garbage, contextlib.suppress(OSError):
                garbage.sendall(os.urandom(100))
        assert process.memory_info().rss - before < MOST
        peers.append(commands.start("dslth-peer", "--id", 2, "-t", file, "--out", "run", "--json"))
        summaries = [summary_of(peer, PeerSummary) for peer in peers]
    refused = summaries[0].refused
    assert refused["flood"] == 3
    assert refused.get("bad-handshake", 0) + refused.get("broken-off", 0) >= 990
    done = commands.run("dslth", "run", "-t", file, "--transport", "memory", "--json", "--out", tmp_path / "calm")
    assert {peer.id: peer.mask_digest for peer in summaries} == digests(printed(done))


def _listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.mark.parametrize("keys_of", [None, "pairs"])
def test_the_guard_knows_to_the_byte_what_waits(transports, pairs, keys_of):
    a, _ = transports(*([pairs(0, 1)] if keys_of else []))
    b, address = transports(*([pairs(1, 0)] if keys_of else []))
    reach(a, 1, address)
    sizes = [0, 1, 222, 223, 255, 256, 1000, 65_536 // 5, LARGEST] * 20
    for number, size in enumerate(sizes):
        while not a.send(1, bytes(size)):  # where it learns that there is room in its queue again
            a.receive(0)
        assert len(next_from(b).message) == size
        if number == 0:
            (watched,) = wait_for(lambda: list(b._guard._open.values()))
            watched.connection.refresh()
            greeted = watched.connection.taken - watched.given  # what was said before the first message
    watched.connection.refresh()
    assert watched.connection.taken - watched.given == greeted
    assert greeted < 1024


def test_a_peer_that_reads_slowly_is_not_filled_by_one_that_writes_fast(transports, clients):
    t, address = transports()
    process = psutil.Process()
    with stranger(address) as raw:
        before = process.memory_info().rss
        sent = 0
        word = b"\x00\x64" + bytes(100)
        raw.settimeout(0.01)
        with contextlib.suppress(ConnectionError):
            while sent < ENDLESS // 8:
                t.receive(0)  # a message now and then, while thousands come
                with contextlib.suppress(TimeoutError):
                    sent += raw.send(100 * word)
        assert sent < ENDLESS // 8
    wait_for(lambda: t.refused() == {"flood": 1})
    assert process.memory_info().rss - before < MOST
