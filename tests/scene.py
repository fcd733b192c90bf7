"""One real peer over a real socket; the test is its neighbour, well-behaved or not."""

import threading
import time

import zmq

from dslth import config, topology, wire
from dslth.coding import codecs
from dslth.config import identity
from dslth.errors import JoinError, WrongRunError
from dslth.exchange.protocol import Place
from dslth.learner import Learner
from dslth.peer import Peer
from dslth.runs.sinks import Call
from dslth.stop import Stop
from dslth.transport.zeromq import ZeroMqTransport
from dslth.wire import Kind


def mask_message(digest, sender, round_, mask, depth=0, held=None):
    """A mask as bits; what it would build on is up to the test."""
    return wire.mask_header(digest, sender, round_, mask.pack(), codecs.BITPACK.wire_id, depth, held), mask.pack()


class Scene:
    """Peer 0 of a pair runs in a thread; ``say`` and ``hear`` are peer 1's side, raw frames over ZeroMQ."""

    def __init__(self, file):
        self.run = config.load(file)
        self.topology = topology.build(self.run.graph, self.run.experiment.seed)
        self.learner = Learner(0, 2, self.run.experiment, self.run.device(0))
        other = Learner(1, 2, self.run.experiment, self.run.device(1))
        self.mask = other.mask()
        self.sizes = self.mask.sizes
        self.settings = identity(self.run, self.topology.digest) | {"layout": "+".join(map(str, self.sizes))}
        self.me = wire.Hello(wire.run_digest(self.settings), self.sizes, self.mask.ones)
        self.events, self.error, self.stop = [], None, Stop()
        self.transport = ZeroMqTransport(wire.max_message(wire.max_payload(self.sizes)), stop=self.stop)
        address = self.transport.listen("tcp://127.0.0.1:*")
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        mine = f"tcp://127.0.0.1:{self.router.bind_to_random_port('tcp://127.0.0.1')}"
        self.address = address
        self.dealer = self.socket()
        self.place = Place(0, self.run, self.topology, [address, mine], join_timeout=20)
        self.peer = Peer(self.place, self.learner, self.transport, [Call(self.events.append)], self.stop)
        self.thread = threading.Thread(target=self._be)
        self.thread.start()

    def _be(self):
        try:
            self.peer.run()
        except (JoinError, WrongRunError) as error:
            self.error = error

    def socket(self):
        dealer = self.context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(self.address)
        return dealer

    def say(self, frames):
        self.dealer.send(b"".join(frames))

    def say_mask(self, round_, mask=None, sender=1, digest=None):
        self.say(mask_message(digest or self.me.digest, sender, round_, mask or self.mask))

    def hear(self, kind, seconds=20):
        deadline = time.monotonic() + seconds
        while self.router.poll(max(0, int(1000 * (deadline - time.monotonic())))):
            route, message = self.router.recv_multipart()
            frames = wire.split(message)
            header = wire.read_header(frames, wire.max_payload(self.sizes))
            if header.kind == kind:
                return route, header, frames[1]
        raise AssertionError(f"no {kind!r}")

    def join(self):
        self.say(wire.hello(Kind.HELLO, self.me, 1, 0))
        route, _, _ = self.hear(Kind.HELLO)
        self.router.send_multipart([route, b"".join(wire.hello(Kind.WELCOME, self.me, 1, 0))])

    def miss_a_deadline(self):
        """Stay silent until the peer has given up waiting in round 0; return the round that it is in."""
        while (round_ := self.hear(Kind.MASK)[1].round) == 0:
            pass
        return round_

    def finish(self):
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.events[-1]

    def close(self):
        self.stop.set()
        self.thread.join(60)
        self.transport.close()
        self.router.close(0)
        self.dealer.close(0)
        self.context.term()

    @property
    def rounds(self):
        return [event for event in self.events if event.event == "round"]

    def noticed(self, what):
        return [event for event in self.events if event.event == "noticed" and event.what == what]


def refused_after(s, *messages):
    """Send the peer messages in its first round, then play the round; return what it counted."""
    s.join()
    s.hear(Kind.MASK)
    for frames in messages:
        s.say(frames)
    s.say_mask(0)
    s.say(wire.bye(s.me.digest, 1, 1))
    return s.finish().refused
