"""Peers as processes behind relays, each of which can be killed, stopped, cut off, slowed, or started elsewhere."""

import multiprocessing
import os
import signal
import threading
from functools import partial

from dslth import config, launcher, topology
from dslth.bench import relay
from dslth.report import summarise
from dslth.runfolder import RunFolder
from live import rounds, wait_for

LOCAL = "tcp://127.0.0.1:*"


class Disturbed:
    """The peers of a topology file, forked from a server that has torch loaded; every edge goes through a relay."""

    def __init__(self, file, path):
        self.run = config.load(file)
        self.graph = topology.build(self.run.graph, self.run.experiment.seed)
        self.folder = RunFolder(path)
        self.processes = {}
        self.relays = relay.Relays(relay.directed(self.graph), self._port)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["dslth.learner", "dslth.peer", "dslth.transport.zeromq"])

    def _port(self, peer):
        found = relay.whereabouts(self.folder, peer)
        return found[1] if found else None

    def start(self, *peers, listen=LOCAL, **options):
        for peer in peers or range(self.graph.peers):
            place = (self.run, self.graph, self.folder, dict(self.relays.ports))
            process = self._context.Process(target=_be, args=(peer, *place, listen, options))
            process.start()
            self.processes[peer] = process

    def signal(self, peer, number):
        os.kill(self.processes[peer].pid, number)
        if number == signal.SIGKILL:
            self.processes[peer].join()

    def events(self, peer):
        try:
            return self.folder.events().get(peer, ())
        except launcher.MissingFileError:
            return ()

    def rounds(self, peer):
        return rounds(self.events(peer))

    def noticed(self, peer):
        return [(e.what, e.neighbour) for e in self.events(peer) if e.event == "noticed"]

    def at_round(self, round_, *peers):
        """Wait until these peers, or all, have played so many rounds."""
        wait_for(lambda: all(len(self.rounds(peer)) >= round_ for peer in peers or range(self.graph.peers)))

    def notices(self, peer, what, neighbour):
        """Wait until a peer says something of a neighbour."""
        wait_for(lambda: (what, neighbour) in self.noticed(peer))

    def finish(self):
        """Wait for the processes; the summary of what they did."""
        for process in self.processes.values():
            process.join(120)
            assert process.exitcode is not None, "a peer does not end"
        return summarise(self.folder)

    def close(self):
        for process in self.processes.values():
            process.kill()
            process.join()
            process.close()
        self.relays.close()


def _be(peer, run, graph, folder, ports, listen, options):
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    be = partial(relay.behind_relays, ports=ports, meet=lambda address: [""] * graph.peers)
    be(peer, run, graph, folder, stop, listen=listen, join_timeout=60, **options)
