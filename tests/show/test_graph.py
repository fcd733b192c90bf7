"""Graphs for people."""

from dslth import config, topology
from dslth.show.graph import draw


def test_many_peers_are_not_drawn_in_text():
    graph = topology.build(config.Ring(kind="ring", peers=80), 1)
    assert max(map(len, draw(graph).splitlines())) == 80
    assert "--png" in draw(topology.build(config.Ring(kind="ring", peers=81), 1))
