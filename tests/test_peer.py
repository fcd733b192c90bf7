"""One real peer over a real socket; the test is its neighbour, well-behaved or not."""

import socket
import threading
import time

import numpy as np
import pytest

from dslth import config, topology, wire
from dslth.errors import AddressError, WrongRunError
from dslth.exchange.protocol import Place
from dslth.learner import Learner
from dslth.masks import BitMask
from dslth.peer import Peer
from dslth.runs.checkpoint import Checkpoints
from dslth.runs.sinks import Call
from dslth.transport.memory import MemoryNetwork, MemoryTransport
from dslth.transport.zeromq import ZeroMqTransport
from dslth.wire import Kind, Refusal
from scene import mask_message, refused_after


def test_a_peer_takes_masks_and_reports(scene):
    s = scene(rounds=2)
    s.join()
    for round_ in range(2):
        _, header, payload = s.hear(Kind.MASK)
        assert header.round == round_
        assert payload
        s.say_mask(round_)
    s.say(wire.bye(s.me.digest, 1, 2))
    finished = s.finish()
    assert finished.rounds_completed == 2
    assert finished.refused == {}
    assert [event.missing for event in s.rounds] == [(), ()]


def test_no_neighbour_waits_for_an_evaluation_and_it_is_reported_with_its_own_round(scene):
    s = scene(rounds=3, evaluate_every=1)
    evaluated, may = threading.Semaphore(0), threading.Semaphore(0)
    evaluation = s.learner.evaluation

    def slow():
        evaluate = evaluation()

        def wait():
            evaluated.release()
            assert may.acquire(timeout=20)
            return evaluate()

        return wait

    s.learner.evaluation = slow
    s.join()
    sent = []
    for round_ in range(3):
        sent.append(len(s.hear(Kind.MASK)[2]))
        if round_:
            assert evaluated.acquire(timeout=20)
            assert len(s.rounds) == round_ - 1
            may.release()
        s.say_mask(round_)
    s.say(wire.bye(s.me.digest, 1, 3))
    may.release()
    s.finish()
    assert [event.links[1].payload_sent for event in s.rounds] == sent
    assert all(event.accuracy_personal is not None and event.seconds.evaluate > 0 for event in s.rounds)
    assert [event.time for event in s.rounds] == sorted(event.time for event in s.rounds)


def test_a_peer_that_is_asked_to_end_reports_the_round_before(scene):
    s = scene(rounds=3, deadline="none")
    s.join()
    s.hear(Kind.MASK)
    s.say_mask(0)
    s.hear(Kind.MASK)
    s.stop.set()
    assert s.finish().rounds_completed == 1
    assert [event.round for event in s.rounds] == [0]


def test_a_lost_hello_is_said_again(scene):
    s = scene(rounds=2000, deadline=1.0, evaluate_every=2000)  # too short to ask by itself
    s.join()  # as if the peer's hello had been lost on the way
    s.say(wire.hello(Kind.HELLO, s.me, 1, 0))
    s.hear(Kind.HELLO)


def test_a_lost_welcome_does_not_keep_a_peer_from_joining_neighbours_that_went_on(scene):
    s = scene(rounds=60)
    s.say(wire.hello(Kind.HELLO, s.me, 1, 0))
    s.hear(Kind.HELLO)
    s.say_mask(40)
    s.say(wire.bye(s.me.digest, 1, 60))
    assert s.finish().rounds_completed == 60
    assert [event.detail for event in s.noticed("skipped")] == ["to round 16", "to round 33", "to round 41"]


def test_no_message_of_a_flood_goes_uncounted(scene):
    s = scene(rounds=6)
    s.join()
    for round_ in range(6):
        s.hear(Kind.MASK)
        s.say_mask(round_)
        for _ in range(600):  # more than the peer takes in once the round is over
            s.say((b"garbage", b""))
    s.say(wire.bye(s.me.digest, 1, 6))
    finished = s.finish()
    assert finished.refused == {"malformed": 3600}
    assert finished.rounds_completed == 6


def flipped(mask):
    return BitMask.from_arrays(~array.astype(bool) for array in mask.arrays())


@pytest.mark.parametrize(
    ("reason", "make"),
    [
        ("stranger", lambda s: mask_message(s.me.digest, 7, 0, s.mask)),
        ("future", lambda s: mask_message(s.me.digest, 1, 1000, s.mask)),
        ("wrong-run", lambda s: mask_message(bytes(16), 1, 0, s.mask)),
        ("wrong-density", lambda s: mask_message(s.me.digest, 1, 0, flipped(s.mask))),
        ("malformed", lambda s: (b"\xc1", b"")),
        ("oversized", lambda s: (mask_message(s.me.digest, 1, 0, s.mask)[0], bytes(wire.max_payload(s.sizes) + 1))),
        ("malformed", lambda s: (b"\xc4\x80" + bytes(128), b"")),
    ],
)
def test_each_refusal_is_counted_under_its_name_and_changes_nothing(scene, reason, make):
    clean = scene(rounds=1)
    assert refused_after(clean) == {}
    s = scene(rounds=1)
    assert refused_after(s, make(s), make(s)) == {reason: 2}
    assert s.events[-1].mask_digest == clean.events[-1].mask_digest


def test_a_second_mask_for_a_round_and_a_late_one_are_refused(scene):
    digests = []
    for bad in (False, True):
        s = scene(rounds=2)
        s.join()
        s.hear(Kind.MASK)
        s.say_mask(1)
        if bad:
            s.say_mask(1)
        s.say_mask(0)
        s.hear(Kind.MASK)
        if bad:
            s.say_mask(0)
        s.say(wire.bye(s.me.digest, 1, 2))
        finished = s.finish()
        digests.append(finished.mask_digest)
        assert finished.refused == ({"duplicate": 1, "stale": 1} if bad else {})
    assert digests[0] == digests[1]


def test_a_mask_before_a_hello_is_refused(scene):
    s = scene(rounds=1)
    s.say_mask(0)
    assert refused_after(s)["no-hello"] == 1


def test_garbage_connections_and_frames_change_nothing(scene):
    clean = scene(rounds=1)
    assert refused_after(clean) == {}
    s = scene(rounds=1)
    rng = np.random.default_rng(0)
    garbage = [[rng.bytes(int(n)) for n in rng.integers(0, 300, rng.integers(1, 5))] for _ in range(500)]
    refused = refused_after(s, *garbage)
    assert sum(refused.values()) == 500
    assert set(refused) <= set(Refusal)
    assert s.events[-1].mask_digest == clean.events[-1].mask_digest


def test_raw_bytes_on_the_port_change_nothing(scene):
    s = scene(rounds=1)
    where = ("127.0.0.1", int(s.address.rpartition(":")[2]))
    rng = np.random.default_rng(1)
    for raw in (b"\x01\x00\x02\x00a", b"\xff" + bytes(8) + b"\x7f", *(rng.bytes(200) for _ in range(30))):
        with socket.create_connection(where) as stranger:
            stranger.sendall(raw)
    s.join()
    s.hear(Kind.MASK)
    with socket.create_connection(where) as old:  # a whole message in ZMTP 1
        old.sendall(b"\x01\x00\x02\x00a")
        s.say_mask(0)
        s.say(wire.bye(s.me.digest, 1, 1))
        assert s.finish().rounds_completed == 1
    assert s.error is None


def test_a_bye_of_another_run_is_refused(scene):
    s = scene(rounds=1)
    assert refused_after(s, wire.bye(bytes(16), 1, 5)) == {"wrong-run": 1}
    assert s.rounds[0].missing == ()


def test_a_sender_of_too_much_is_cut_off(scene):
    s = scene(rounds=1)
    flood = s.socket()
    flood.send(bytes(50_000_000))
    refused = refused_after(s)
    flood.close(0)
    assert set(refused) <= {"broken-off"}


def test_a_silent_neighbour_costs_one_deadline(scene):
    s = scene(rounds=4, deadline=3.0)
    s.join()
    finished = s.finish()
    assert finished.rounds_completed == 4
    assert [event.missing for event in s.rounds] == [(1,)] * 4
    waits = [event.seconds.wait for event in s.rounds]
    assert waits[0] > 2.9
    assert max(waits[1:]) < 3.0  # not waited for again


def test_a_neighbour_that_comes_back_is_waited_for_again(scene):
    s = scene(rounds=100, deadline=5.0, evaluate_every=100)
    s.join()
    last = s.miss_a_deadline()
    s.say(wire.hello(Kind.HELLO, s.me, 1, last))
    s.say_mask(last)
    while last < 99:
        last = s.hear(Kind.MASK)[1].round
        s.say_mask(last)
    s.say(wire.bye(s.me.digest, 1, 100))
    s.finish()
    missing = [event.missing for event in s.rounds]
    came_back = missing.index(())
    assert 0 < came_back < 100
    assert missing == [(1,)] * came_back + [()] * (100 - came_back)


def test_a_neighbour_whose_masks_are_late_is_waited_for_once_more(scene):
    s = scene(rounds=100, deadline=3.0, evaluate_every=100)
    s.join()
    last = s.miss_a_deadline()
    s.say_mask(0)  # without a hello, and a round behind
    while last < 99:
        last = s.hear(Kind.MASK)[1].round
        if s.noticed("back"):
            s.say_mask(last)
    s.say(wire.bye(s.me.digest, 1, 100))
    finished = s.finish()
    missing = [event.missing for event in s.rounds]
    came_back = missing.index(())
    assert missing == [(1,)] * came_back + [()] * (100 - came_back)
    assert finished.refused["stale"] >= 1
    assert len(s.noticed("lost")) == 1


def test_a_hello_of_another_run_is_answered_with_the_settings(scene):
    s = scene(rounds=1)
    s.say(wire.hello(Kind.HELLO, wire.Hello(bytes(16), s.sizes, s.mask.ones), 1, 0))
    assert s.dealer.poll(20_000)
    frames = wire.split(s.dealer.recv())
    assert wire.read_header(frames, wire.max_payload(s.sizes)).kind == Kind.REFUSED
    assert wire.read_refusal(frames[1])["seed"] == "7"


def test_only_the_neighbours_own_address_can_tell_a_peer_that_it_is_wrong(scene):
    s = scene(rounds=1)
    s.say(wire.refusal(s.me.digest, 1, 0, {"seed": "8"}))  # on a connection that the peer did not open
    refused = refused_after(s)
    assert refused == {"stranger": 1}
    assert s.error is None


def test_a_refused_peer_ends_with_what_differs(scene):
    s = scene(rounds=1)
    route, _, _ = s.hear(Kind.HELLO)
    s.router.send_multipart([route, b"".join(wire.refusal(s.me.digest, 1, 0, s.settings | {"seed": "8"}))])
    s.thread.join(30)
    assert isinstance(s.error, WrongRunError)
    assert "seed is 7 here and 8 there" in str(s.error)


def test_an_address_is_listened_on_once():
    network = MemoryNetwork()
    MemoryTransport(network, 0).listen("memory://0")
    with pytest.raises(AddressError):
        MemoryTransport(network, 1).listen("memory://0")


def test_link_bytes_agree_with_the_kernel_of_the_other_end():
    a, b = ZeroMqTransport(1 << 20), ZeroMqTransport(1 << 20)
    try:
        at = b.listen("tcp://127.0.0.1:*")
        a.listen("tcp://127.0.0.1:*")
        a.connect(1, at)
        while not a.connected():
            a.receive(0.05)
        for _ in range(10):
            assert a.send(1, bytes(10_000))
            delivery = b.receive(10)
            assert delivery is not None
            b.identify(delivery.route, 0)
            assert b.answer(delivery.route, b"thanks")
            answers = (a.receive(10) for _ in range(5))  # a connection that comes up ends a wait early
            assert next(answer for answer in answers if answer).answer_of == 1
        sent, received = a.link_bytes()[1], b.link_bytes()[0]
        assert sent.sent == received.received > 100_000
        assert sent.received == received.sent > 60
    finally:
        a.close()
        b.close()


def test_a_slow_device_takes_its_time(topology_file):
    run = config.load(topology_file(peers={0: {"speed": 0.25}}, rounds=1, algorithm={"exchange": False}))
    waited, computed = [], []

    class Stop(threading.Event):
        def wait(self, timeout=None):
            waited.append(timeout)
            return False

    class Timed(Learner):
        def local_update(self, round_):
            start = time.perf_counter()
            learned = super().local_update(round_)
            computed.append(time.perf_counter() - start)
            return learned

    learner = Timed(0, 3, run.experiment, run.device(0))
    place = Place(0, run, topology.build(run.graph, run.experiment.seed), ["memory://0"] * 3)
    Peer(place, learner, MemoryTransport(MemoryNetwork(), 0), [], Stop()).run()
    assert 3 * computed[0] <= waited[0] <= 3 * computed[0] + 1  # four times as long in all


def test_a_checkpoint_says_that_a_round_was_played_only_after_its_report(topology_file, tmp_path):
    run = config.load(topology_file(rounds=3, checkpoint_every=1, algorithm={"exchange": False}))
    order = []

    class Watched(Checkpoints):
        def save(self, checkpoint):
            order.append(("saved", checkpoint.round))
            super().save(checkpoint)

    def watch(event):
        if event.event == "round":
            order.append(("reported", event.round))

    place = Place(0, run, topology.build(run.graph, run.experiment.seed), ["memory://0"] * 3)
    transport, checkpoints = MemoryTransport(MemoryNetwork(), 0), Watched(tmp_path)
    learner = Learner(0, 3, run.experiment, run.device(0))
    Peer(place, learner, transport, [Call(watch)], threading.Event(), checkpoints).run()
    assert order == [(what, n + (what == "saved")) for n in range(3) for what in ("reported", "saved")]
