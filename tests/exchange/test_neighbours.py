"""Neighbours that move, that lie, or that are many: played by the test over real sockets to a real peer."""

import contextlib
import dataclasses
import itertools
import resource
import socket
import threading
import time

import psutil
import pytest
import zmq

from dslth import config, topology, wire
from dslth.coding import codecs
from dslth.config import identity
from dslth.exchange import protocol
from dslth.exchange.protocol import Place
from dslth.learner import Learner
from dslth.peer import Peer
from dslth.runs.sinks import Call
from dslth.transport.zeromq import ZeroMqTransport
from dslth.wire import Kind
from scene import mask_message, refused_after
from tap import free_ports

# --- a neighbour that moves -----------------------------------------------------------------------------------------


class Door:
    """A TCP port that counts connections."""

    def __init__(self, host="127.0.0.1"):
        self.server = socket.create_server((host, 0))
        self.address = f"tcp://{host}:{self.server.getsockname()[1]}"
        self.server.setblocking(False)

    def visited(self):
        try:
            self.server.accept()[0].close()
        except BlockingIOError:
            return False
        return True


def hello_from(s, address, round_=0):
    return wire.hello(Kind.HELLO, dataclasses.replace(s.me, address=address), 1, round_)


@pytest.mark.parametrize(
    "address",
    [
        "ipc:///tmp/x",
        "inproc://x",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:99999",
        "tcp://127.0.0.1:47100;tcp://127.0.0.1:1",
        "127.0.0.1:47100",
        "tcp://a b:1",
        "tcp://\x1b[31m:1",
        "\0",
    ],
)
def test_an_address_that_is_none_is_refused(scene, address):
    s = scene(rounds=1)
    assert refused_after(s, hello_from(s, address)) == {"wrong-address": 1}
    assert s.error is None


def test_without_keys_a_neighbour_moves_to_its_own_host_only(scene):
    s, door = scene(rounds=1), Door("127.0.0.2")
    with door.server:
        assert refused_after(s, hello_from(s, door.address), hello_from(s, "tcp://example.org:80")) == {
            "wrong-address": 2
        }
        assert not door.visited()


def test_a_neighbour_moves_at_most_once_in_a_while_and_takes_no_descriptors(scene):
    s = scene(rounds=1, deadline=60)
    doors = [Door() for _ in range(20)]
    with contextlib.ExitStack() as stack:
        for door in doors:
            stack.enter_context(door.server)
        s.join()
        s.hear(Kind.MASK)
        before = psutil.Process().num_fds()
        for door in doors:
            s.say(hello_from(s, door.address))
            s.dealer.recv_multipart()  # the welcome: it was taken in
        assert psutil.Process().num_fds() <= before + 2
        assert sum(door.visited() for door in doors) <= 1
        s.say_mask(0)
        s.say(wire.bye(s.me.digest, 1, 1))
        assert s.finish().rounds_completed == 1
    assert s.noticed("moved") == []  # none of them proved to be a peer


def test_a_neighbour_that_moves_back_to_where_the_topology_says_is_found_again(scene):
    s = scene(rounds=3, deadline=60)
    s.join()
    s.hear(Kind.MASK)
    elsewhere = s.context.socket(zmq.ROUTER)
    try:
        there = f"tcp://127.0.0.1:{elsewhere.bind_to_random_port('tcp://127.0.0.1')}"
        s.say(hello_from(s, there))
        assert elsewhere.poll(20_000)  # a hello there
        s.say_mask(0)
        while wire.read_header(wire.split(elsewhere.recv_multipart()[1]), wire.max_payload(s.sizes)).kind != Kind.MASK:
            assert elsewhere.poll(20_000)
    finally:
        elsewhere.close(0)
    deadline = time.monotonic() + 30
    while len(s.noticed("moved")) < 2:
        assert time.monotonic() < deadline
        s.say(hello_from(s, "", 1))  # started again without --advertise
        with contextlib.suppress(AssertionError):
            s.hear(Kind.HELLO, seconds=1)
    assert [event.detail for event in s.noticed("moved")] == [there, s.place.addresses[1]]
    for round_ in (1, 2):
        s.say_mask(round_)
    s.say(wire.bye(s.me.digest, 1, 3))
    assert s.finish().rounds_completed == 3


# --- a neighbour that lies ------------------------------------------------------------------------------------------


def test_one_lie_about_the_round_skips_nothing(scene):
    s = scene(rounds=100, deadline=0.2, evaluate_every=100)
    s.join()
    s.hear(Kind.MASK)
    s.say(wire.hello(Kind.HELLO, s.me, 1, 90))
    s.say(wire.word(Kind.TELL, s.me.digest, 1, 95, 94, 95))
    finished = s.finish()
    assert finished.rounds_completed == 100
    assert [event.round for event in s.rounds] == list(range(100))


def test_a_mask_from_far_ahead_skips_a_bounded_number_of_rounds(scene):
    s = scene(rounds=3000, deadline=0.2, evaluate_every=3000)
    s.join()
    s.hear(Kind.MASK)
    s.say_mask(2990)
    while len(s.rounds) < 2:
        s.hear(Kind.MASK)
    skips = [after.round - before.round for before, after in itertools.pairwise(s.rounds)]
    assert max(skips) <= protocol.SKIP + 1
    s.stop.set()


def test_a_peer_that_is_led_to_the_end_says_so_and_does_not_end_with_0(commands, topology_file):
    base = free_ports(2)
    file = topology_file(
        graph={"kind": "line", "peers": 2}, network={"base_port": base}, rounds=300, deadline=2, evaluate_every=300
    )
    run = config.load(file)
    graph = topology.build(run.graph, run.experiment.seed)
    mask = Learner(1, 2, run.experiment, run.device(1)).mask()
    settings = identity(run, graph.digest) | {"layout": "+".join(map(str, mask.sizes))}
    me = wire.Hello(wire.run_digest(settings), mask.sizes, mask.ones)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        router.linger = dealer.linger = 0
        router.bind(f"tcp://127.0.0.1:{base + 1}")
        dealer.connect(f"tcp://127.0.0.1:{base}")
        peer = commands.start("dslth-peer", "--id", 0, "-t", file, "--out", "run", "--quiet")
        dealer.send(b"".join(wire.hello(Kind.HELLO, me, 1, 0)))
        round_ = 0
        while peer.poll() is None:
            while router.poll(50):
                route, message = router.recv_multipart()
                header = wire.read_header(wire.split(message), wire.max_payload(mask.sizes))
                if header.kind == Kind.HELLO:
                    router.send_multipart([route, b"".join(wire.hello(Kind.WELCOME, me, 1, 0))])
                round_ = min(299, header.round + 40)  # always far ahead, with a mask that can be read
                packed = mask.pack()
                dealer.send(wire.mask_header(me.digest, 1, round_, packed, codecs.BITPACK.wire_id, 0, None) + packed)
        _, stderr = peer.communicate(timeout=60)
    assert peer.returncode == 17, stderr
    assert "of 300 rounds" in stderr.strip().splitlines()[-1]


def test_a_neighbour_that_claims_to_hold_nothing_again_and_again_is_answered_seldom(scene):
    s = scene(rounds=40, deadline=2.0, evaluate_every=40, checkpoint_every=10)
    s.join()
    for round_ in range(12):
        s.hear(Kind.MASK)
        s.say_mask(round_)
    s.hear(Kind.MASK)
    for _ in range(500):
        s.say(wire.lost(s.me.digest, 1, 0, None, 0))
        s.say(wire.word(Kind.ASK, s.me.digest, 1, 0, None, None))
    again = 0
    while s.hear(Kind.MASK)[1].round <= 12:
        again += 1
    assert again <= 3 * 12  # what is kept, once a second
    s.stop.set()
    s.thread.join(60)
    waits = [event.seconds.wait + event.seconds.decode for event in s.rounds]
    assert max(waits) < 2.0 + 1.0


# --- a thousand neighbours ------------------------------------------------------------------------------------------

SPOKES = 1000
FILES_OF_A_SPOKE = 6
"""A listening socket, a connected one, what ZeroMQ wakes them with, and both ends of a connection."""


@pytest.fixture
def room_for_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SPOKES * (FILES_OF_A_SPOKE + 2) + 200
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, the machine allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Spokes:
    """All neighbours of a hub: each greets, answers each mask with its own, and leaves after the last round."""

    def __init__(self, settings, sizes, mask, rounds):
        self.me = wire.Hello(wire.run_digest(settings), sizes, mask.ones)
        self.mask, self.rounds = mask, rounds
        self.context = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, 2 * SPOKES + 8)
        self.routers = [self.context.socket(zmq.ROUTER) for _ in range(SPOKES)]
        self.peers = {router: number for number, router in enumerate(self.routers, 1)}
        self.addresses = [f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}" for router in self.routers]
        self.poller = zmq.Poller()
        self.dealers = {}

    def greet(self, hub):
        for router, peer in self.peers.items():
            dealer = self.dealers[peer] = self.context.socket(zmq.DEALER)
            dealer.connect(hub)
            dealer.send(b"".join(wire.hello(Kind.HELLO, self.me, peer, 0)))
            self.poller.register(router, zmq.POLLIN)

    def answer(self):
        for router, _ in self.poller.poll(200):
            peer, (route, message) = self.peers[router], router.recv_multipart()
            header = wire.read_header(wire.split(message), wire.max_payload(self.me.sizes))
            if header.kind == Kind.HELLO:
                router.send_multipart([route, b"".join(wire.hello(Kind.WELCOME, self.me, peer, 0))])
            elif header.kind == Kind.MASK:
                self.dealers[peer].send(b"".join(mask_message(self.me.digest, peer, header.round, self.mask)))
                if header.round + 1 == self.rounds:
                    self.dealers[peer].send(b"".join(wire.bye(self.me.digest, peer, self.rounds)))

    def close(self):
        self.context.destroy(linger=0)


def test_the_hub_of_a_star_has_a_thousand_neighbours_at_two_files_each(topology_file, room_for_files):
    run = config.load(topology_file(graph={"kind": "star", "peers": SPOKES + 1}, rounds=2, evaluate_every=2))
    graph = topology.build(run.graph, run.experiment.seed)
    learner = Learner(0, 10, run.experiment, run.device(0))  # which samples it has does not matter here
    settings = identity(run, graph.digest) | {"layout": "+".join(map(str, learner.sizes))}
    spokes = Spokes(settings, learner.sizes, Learner(1, 10, run.experiment, run.device(1)).mask(), 2)
    hub = ZeroMqTransport(wire.max_message(wire.max_payload(learner.sizes)), neighbours=SPOKES)
    try:
        address = hub.listen("tcp://127.0.0.1:*")
        place = Place(0, run, graph, [address, *spokes.addresses], join_timeout=200)
        events = []
        peer = Peer(place, learner, hub, [Call(events.append)], threading.Event())
        spokes.greet(address)
        before = psutil.Process().num_fds()
        playing = threading.Thread(target=peer.run)
        playing.start()
        held = 0
        while playing.is_alive():
            spokes.answer()
            held = max(held, psutil.Process().num_fds() - before)
        assert [event.missing for event in events if event.event == "round"] == [(), ()]
        assert events[-1].rounds_completed == 2
        assert events[-1].refused == {}
        # each connection has both its ends in this process, and the spokes' dealers connect meanwhile
        assert held < SPOKES * 4 + 100
    finally:
        hub.close()
        spokes.close()
