"""Peers as processes behind relays, each of which can be killed, stopped, cut off, slowed, or started elsewhere."""

import os
import signal
from functools import partial

from dslth import config, topology
from dslth.bench.stress import relay
from dslth.engines import server
from dslth.engines.base import PeerJob, Surroundings, run_peer
from dslth.runs.events import parse
from dslth.runs.folder import RunFolder
from dslth.runs.summary import summarise
from dslth.stop import Stop
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
        self._context = server.context()

    def _port(self, peer):
        found = relay.whereabouts(self.folder, peer)
        return found.port if found else None

    def start(self, *peers, listen=LOCAL, **options):
        for peer in peers or range(self.graph.peers):
            surround = partial(relay.behind_relays, ports=dict(self.relays.ports))
            job = PeerJob(peer, self.run, self.graph, self.folder, listen=listen, surround=surround, **options)
            process = self._context.Process(target=_run, args=(job,))
            process.start()
            self.processes[peer] = process

    def signal(self, peer, number):
        os.kill(self.processes[peer].pid, number)
        if number == signal.SIGKILL:
            self.processes[peer].join()

    def _text(self, peer):
        file = self.folder.reports(peer)
        return file.read_text() if file.exists() else ""

    def events(self, peer):
        return [event for line in self._text(peer).splitlines() if (event := parse(line))]

    def rounds(self, peer):
        return rounds(self.events(peer))

    def noticed(self, peer):
        said = (parse(line) for line in self._text(peer).splitlines() if '"noticed"' in line)
        return [(event.what, event.neighbour) for event in said if event]

    def at_round(self, round_, *peers):
        """Wait until these peers, or all, have reported so many rounds."""
        who = peers or range(self.graph.peers)
        wait_for(lambda: all(self._text(peer).count('"event":"round"') >= round_ for peer in who))

    def notices(self, peer, what, neighbour):
        """Wait until a peer reports something about a neighbour."""
        wait_for(lambda: (what, neighbour) in self.noticed(peer))

    def finish(self):
        """Wait for the processes; return the summary of what they did."""
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


def _run(job):
    stop = Stop()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # a server that dslth started blocks it
    run_peer(job, Surroundings(stop, lambda address: [""] * job.topology.peers))
