"""Host names: looked up beside the peer, so that a name server that does not answer holds up nobody."""

import threading

import pytest
from test_transport import deliver, wait_for

from dslth.errors import AddressError
from dslth.transport import names
from dslth.transport.names import Names, resolve
from dslth.transport.zeromq import ZeroMqTransport


class Server:
    """A name server that the test holds: names, and those that it never answers for."""

    def __init__(self, **known):
        self.known, self.asked, self.silent, self.answers = known, [], set(), threading.Event()

    def __call__(self, host):
        self.asked.append(host)
        if host in self.silent:
            self.answers.wait()
        return self.known.get(host, [])


@pytest.fixture
def server():
    made = Server()
    yield made
    made.answers.set()


@pytest.fixture
def transports(server):
    made = []

    def make(listen="tcp://127.0.0.1:*"):
        made.append(ZeroMqTransport(1 << 16, names=Names(server)))
        return made[-1], made[-1].listen(listen).rpartition(":")[2]

    yield make
    for transport in made:
        transport.close()


def test_the_system_is_asked():
    assert resolve("localhost") == ["127.0.0.1"]
    assert resolve("no-such-host.invalid") == []
    assert resolve("a" * 70) == []


def test_living_neighbours_are_reached_while_the_server_is_silent_about_dead_ones(transports, server):
    a, _ = transports()
    server.known = {"living": ["127.0.0.1"]}
    server.silent = {f"dead-{n}" for n in range(5)}
    for n in range(5):
        a.connect(10 + n, f"tcp://dead-{n}:47100")
    wait_for(lambda: len(server.asked) == 5, a)  # and all of them wait for an answer
    b, port = transports()
    a.connect(1, f"tcp://living:{port}")
    assert wait_for(a.opened, a) == [1]
    assert a.send(1, b"message")
    assert deliver(b).message == b"message"
    assert not a.send(10, b"message")
    assert a.connected() == {1}


def test_a_connection_that_breaks_comes_back_while_its_name_is_not_answered_for(transports, server):
    a, _ = transports()
    server.known = {"living": ["127.0.0.1"]}
    b, port = transports()
    a.connect(1, f"tcp://living:{port}")
    wait_for(lambda: a.connected() == {1}, a)
    server.silent = {"living"}
    asked = len(server.asked)
    b.close()
    wait_for(lambda: len(server.asked) > asked, a)
    transports(f"tcp://127.0.0.1:{port}")
    wait_for(lambda: a.connected() == {1}, a)


def test_a_name_that_leads_elsewhere_is_followed(transports, server):
    a, _ = transports()
    server.known = {"peer": ["127.0.0.1"]}
    b, port = transports()
    a.connect(1, f"tcp://peer:{port}")
    wait_for(lambda: a.connected() == {1}, a)
    b.close()
    server.known = {"peer": ["127.0.0.3"]}
    c, _ = transports(f"tcp://127.0.0.3:{port}")
    wait_for(lambda: a.connected() == set(), a)
    assert wait_for(a.opened, a) == [1]
    assert a.send(1, b"there")
    assert deliver(c).message == b"there"


def test_a_dead_peers_number_given_to_another_is_the_others(transports, server):
    a, _ = transports()
    b, port = transports()
    server.known = {"dead": ["127.0.0.1"]}
    a.connect(1, f"tcp://dead:{port}")
    wait_for(lambda: a.connected() == {1}, a)
    b.close()
    server.known = {"living": ["127.0.0.1"]}
    transports(f"tcp://127.0.0.1:{port}")
    a.connect(2, f"tcp://living:{port}")
    wait_for(lambda: 2 in a.connected(), a)
    assert a.connected() == {2}


def test_two_neighbours_are_not_in_one_place(transports):
    a, _ = transports()
    _, port = transports()
    a.connect(1, f"tcp://127.0.0.1:{port}")
    with pytest.raises(AddressError, match="where peer 1 is"):
        a.connect(2, f"tcp://127.0.0.1:{port}")
    wait_for(lambda: a.connected() == {1}, a)


def test_no_more_than_a_few_names_are_looked_up_at_once(server):
    hosts = [f"dead-{n}" for n in range(3 * names.AT_ONCE)]
    server.silent = set(hosts)
    known = Names(server)
    for _ in range(3):
        for host in hosts:
            assert known.numbers(host) == []
    wait_for(lambda: len(server.asked) == names.AT_ONCE)
    assert len(server.asked) == names.AT_ONCE
