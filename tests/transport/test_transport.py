"""Transports by themselves: liveness, and an edge that moves."""

import socket
import time

import pytest

from dslth.transport.memory import MemoryNetwork, MemoryTransport
from dslth.transport.zeromq import ZeroMqTransport


@pytest.fixture
def transports():
    made = []

    def make(listen="tcp://127.0.0.1:*", **settings):
        made.append(ZeroMqTransport(1 << 16, **settings))
        return made[-1], made[-1].listen(listen)

    yield make
    for transport in made:
        transport.close()


def wait_for(condition, *pumped, seconds=30):
    """Let transports work until a condition holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        for transport in pumped:
            transport.receive(0.01)
    return found


def deliver(transport):
    found = []
    wait_for(lambda: found.append(transport.receive(0.05)) or found[-1])
    return found[-1]


def test_a_process_that_accepts_and_never_speaks_is_not_back(transports):
    a, _ = transports()
    b, address = transports()
    a.connect(1, address)
    wait_for(lambda: a.connected() == {1}, a)
    assert a.opened() == [1]
    b.close()
    wait_for(lambda: a.connected() == frozenset(), a)
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))) as stopped:
        stopped.settimeout(30)
        connection, _ = stopped.accept()
        with connection:
            assert connection.recv(1)  # its greeting: TCP is there
            a.receive(0.05)
            assert a.connected() == frozenset()
            assert a.opened() == []
    transports(address)
    assert wait_for(a.opened, a) == [1]
    assert a.connected() == {1}


def test_a_neighbour_that_moved_is_reached_at_its_new_address_and_its_bytes_count_on(transports):
    a, _ = transports()
    b, before = transports()
    a.connect(1, before)
    assert not a.send(1, b"too early")
    wait_for(a.opened, a)
    assert a.send(1, bytes(1000))
    deliver(b)
    counted = a.link_bytes()[1]
    assert counted.sent > 1000
    c, after = transports()
    a.connect(1, after)
    assert wait_for(a.opened, a) == [1]
    assert a.send(1, bytes(2000))
    assert deliver(c).message == bytes(2000)
    assert a.link_bytes()[1].sent > counted.sent + 2000
    assert a.connected() == {1}


def test_in_memory_a_peer_with_a_mailbox_is_connected():
    network = MemoryNetwork()
    a, b = MemoryTransport(network, 0), MemoryTransport(network, 1)
    a.listen("memory://0")
    a.connect(1, "memory://1")
    assert a.connected() == frozenset()
    b.listen("memory://1")
    assert a.connected() == {1}
    b.close()
    assert a.connected() == frozenset()
