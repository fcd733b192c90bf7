"""The graph of peers: made from a few settings, or read from a file made elsewhere.

networkx is loaded where it is needed, for random graphs, grids and GraphML: it takes 12 MB of every peer's memory.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from dslth import config, files
from dslth.errors import MissingFileError, TopologyError
from dslth.seeds import Stream

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Topology", "build", "read_graph"]

MOST_PEERS = 10_000
"""Of a run; each is a process with a port of its own on a machine."""
MOST_LINKS = 2_000_000
"""Pairs of peers that a graph may link, or for which it may draw: a gigabyte, and half a minute."""
MOST_BYTES = 32 << 20
"""Of a graph file."""
DRAWS = 100
"""How often a random graph is drawn before giving up on one in one piece."""


@dataclass(frozen=True)
class Topology:
    """An undirected, connected graph of peers 0 .. peers-1; ``edges`` are sorted pairs with the smaller id first."""

    peers: int
    edges: tuple[tuple[int, int], ...]

    def neighbours(self, peer: int, round_: int = 0) -> tuple[int, ...]:
        """Return the peers that a peer talks to in a round, in ascending order (so far the same in every round)."""
        return self._neighbours[peer]

    @cached_property
    def _neighbours(self) -> list[tuple[int, ...]]:
        return [tuple(sorted(links)) for links in _adjacency(self.peers, self.edges)]

    @cached_property
    def digest(self) -> str:
        """Return 16 hex digits of a SHA-256 over the edges."""
        return hashlib.sha256(f"{self.peers}:{self.edges}".encode()).hexdigest()[:16]

    @classmethod
    def from_networkx(cls, graph: "nx.Graph[Any]") -> "Topology":
        """Return a networkx graph as a topology; its nodes become peers 0, 1, 2 ... in their order.

        Raises TopologyError if it is in pieces, has a self-loop, or is too large.
        """
        numbers = {node: number for number, node in enumerate(graph)}
        return _from_edges(((numbers[a], numbers[b]) for a, b in graph.edges()), len(numbers))

    def to_networkx(self) -> "nx.Graph[int]":
        """Return the graph as a networkx graph."""
        import networkx as nx

        graph: nx.Graph[int] = nx.Graph()
        graph.add_nodes_from(range(self.peers))
        graph.add_edges_from(self.edges)
        return graph

    def to_config(self) -> config.Edges:
        """Return the graph as the ``graph`` section of a topology file."""
        return config.Edges(kind="edges", peers=self.peers, edges=self.edges)


def build(graph: config.GraphConfig, seed: int) -> Topology:
    """Make the graph that a topology file asks for.

    Random kinds are drawn from ``graph.seed``, or without one the run's ``seed``, again until in one piece.

    Raises TopologyError (in pieces, a self-loop, impossible degrees, too large) and MissingFileError.
    """
    _bound(*_size(graph), "graph")
    match graph:
        case config.GraphFile():
            return read_graph(Path(graph.file))
        case config.ErdosRenyi() | config.SmallWorld() | config.RandomRegular():
            return _drawn(graph, seed)
        case config.Edges():
            return _from_edges(graph.edges, graph.peers, "graph.edges")
        case _:
            return _regular(graph)


def _size(graph: config.GraphConfig) -> tuple[int, int]:
    """Count the peers of a graph, and the links that making it goes through, before any memory is taken for them."""
    match graph:
        case config.Ring() | config.Line() | config.Star():
            return graph.peers, graph.peers
        case config.Full() | config.ErdosRenyi():
            return graph.peers, graph.peers * (graph.peers - 1) // 2
        case config.Grid() | config.Torus():
            return graph.rows * graph.columns, 2 * graph.rows * graph.columns
        case config.SmallWorld():
            return graph.peers, graph.peers * graph.neighbours // 2
        case config.RandomRegular():
            return graph.peers, graph.peers * min(graph.degree, abs(graph.peers - 1 - graph.degree)) // 2
        case config.Edges():
            return graph.peers, len(graph.edges)
        case config.GraphFile():  # bounded as it is read
            return 0, 0


def _bound(peers: int, links: int, where: str) -> None:
    if peers > MOST_PEERS:
        raise TopologyError(f"{where}: too many peers; a run has {MOST_PEERS:,} at the most")
    if links > MOST_LINKS:
        raise TopologyError(f"{where}: {links:,} links are too many, {MOST_LINKS:,} the most; take fewer peers")


def _regular(graph: config.Ring | config.Line | config.Star | config.Full | config.Grid | config.Torus) -> Topology:
    match graph:
        case config.Ring():
            return _from_edges(((peer, (peer + 1) % graph.peers) for peer in range(graph.peers)), graph.peers)
        case config.Line():
            return _from_edges(((peer, peer + 1) for peer in range(graph.peers - 1)), graph.peers)
        case config.Star():
            return _from_edges(((0, peer) for peer in range(1, graph.peers)), graph.peers)
        case config.Full():
            return _from_edges(combinations(range(graph.peers), 2), graph.peers)
        case config.Grid() | config.Torus():
            import networkx as nx

            grid = nx.grid_2d_graph(graph.rows, graph.columns, periodic=graph.kind == "torus")
            return _from_networkx(nx.convert_node_labels_to_integers(grid, ordering="sorted"))


def read_graph(path: Path) -> Topology:
    """Read a graph file: GraphML, a 0/1 adjacency matrix, or an edge list with or without its node count on top.

    GraphML nodes are numbered in the file's order, unless their names already are the numbers 0 .. n-1. Commas count
    as spaces and lines that start with ``#`` as comments.

    Raises MissingFileError and TopologyError.
    """
    try:
        text = files.read(path, MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise MissingFileError(f"cannot read graph file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TopologyError(f"{path}: not a text file") from None
    if text.lstrip().startswith("<"):
        return _from_graphml(path)
    lines = [line.replace(",", " ").split() for line in text.splitlines()]
    numbered = [(n, line) for n, line in enumerate(lines, 1) if line and not line[0].startswith("#")]
    try:
        rows = [[int(word) for word in line] for _, line in numbered]
    except ValueError:
        raise TopologyError(f"{path}: neither an adjacency matrix nor an edge list of whole numbers") from None
    n = len(rows)
    if n == 0:
        raise TopologyError(f"{path}: the file is empty")
    if n > 1 and all(len(row) == n for row in rows) and {x for row in rows for x in row} <= {0, 1}:
        return _from_matrix(rows, path)
    counted = len(rows[0]) == 1
    edges = rows[counted:]
    for (number, _), row in zip(numbered[counted:], edges, strict=True):
        if len(row) != 2 or min(row) < 0:
            raise TopologyError(f"{path}:{number}: neither a row of an n x n matrix of 0 and 1 nor an edge")
    peers = rows[0][0] if counted else 1 + max(map(max, edges))
    return _from_edges([(a, b) for a, b in edges], peers, str(path))


def _from_matrix(rows: list[list[int]], path: Path) -> Topology:
    n = len(rows)
    lopsided = next(((j, i) for i in range(n) for j in range(i) if rows[i][j] != rows[j][i]), None)
    if lopsided:
        raise TopologyError(f"{path}: the matrix is not symmetric, see peers {lopsided[0]} and {lopsided[1]}")
    return _from_edges(((i, j) for i in range(n) for j in range(i + 1) if rows[i][j]), n, str(path))


def _from_graphml(path: Path) -> Topology:
    import networkx as nx

    try:
        nodes = ElementTree.parse(path).findall(".//{*}node")  # noqa: S314  # networkx parses it the same way
        declared = [node.get("id") for node in nodes]
        graph: nx.Graph[str] = nx.Graph(nx.read_graphml(path))
    except Exception as error:  # networkx raises another kind for each thing that is missing in a file
        where = str(error) if isinstance(error, ElementTree.ParseError) else "something is missing, or of another kind"
        raise TopologyError(f"{path}: not GraphML: {where}") from None
    names = list(graph)
    if None in declared or len(set(declared)) < len(declared):
        raise TopologyError(
            f"{path}: every node needs an id of its own; {len(declared)} nodes, {len(set(declared))} ids"
        )
    if unknown := set(names) - set(declared):
        raise TopologyError(f"{path}: an edge names the node {min(map(str, unknown))!r}, which is not there")
    numbered = {str(i) for i in range(len(names))} == set(names)
    order = {name: int(name) if numbered else i for i, name in enumerate(names)}
    return _from_edges(((order[a], order[b]) for a, b in graph.edges), len(names), str(path))


def _drawn(graph: config.ErdosRenyi | config.SmallWorld | config.RandomRegular, run_seed: int) -> Topology:
    n = graph.peers
    if isinstance(graph, config.SmallWorld) and graph.neighbours > n:
        raise TopologyError(f"graph.neighbours: {graph.neighbours} links for each of {n} peers")
    if isinstance(graph, config.RandomRegular) and (graph.degree >= n or graph.degree * n % 2):
        raise TopologyError(
            f"graph.degree: no graph gives {n} peers {graph.degree} links each; "
            "degree must be below peers, and peers x degree even"
        )
    import networkx as nx

    for attempt in range(DRAWS):
        seed = Stream(run_seed if graph.seed is None else graph.seed, "graph", attempt).integer()
        match graph:
            case config.ErdosRenyi():
                drawn = nx.erdos_renyi_graph(n, graph.p, seed=seed)
            case config.SmallWorld():
                drawn = nx.watts_strogatz_graph(n, graph.neighbours, graph.p, seed=seed)
            case config.RandomRegular():
                drawn = _random_regular(n, graph.degree, seed)
        if nx.is_connected(drawn):
            return _from_networkx(drawn)
    raise TopologyError(f"graph: {DRAWS} draws all came out in pieces; raise p, the degree or the links of a peer")


def _random_regular(n: int, degree: int, seed: int) -> "nx.Graph[int]":
    """Draw a graph; a dense one as the complement of a sparse one, since pairing many ends takes for ever."""
    import networkx as nx

    thin = min(degree, n - 1 - degree)
    drawn: nx.Graph[int] = nx.random_regular_graph(thin, n, seed=seed)
    if degree > thin:
        drawn = nx.complement(drawn)
    return drawn


def _from_networkx(graph: "nx.Graph[int]") -> Topology:
    return _from_edges(graph.edges, len(graph))


def _from_edges(edges: Iterable[tuple[int, int]], peers: int, where: str = "graph") -> Topology:
    links = list(edges)
    _bound(peers, len(links), where)
    for peer in (peer for link in links for peer in link):
        if not 0 <= peer < peers:
            raise TopologyError(f"{where}: an edge names peer {peer}, but there are peers 0 to {peers - 1}")
    for peer, other in links:
        if peer == other:
            raise TopologyError(f"{where}: peer {peer} is linked to itself; take that edge out")
    if peers < 2:
        raise TopologyError(f"{where}: {peers} peer(s); decentralised learning needs at least two")
    pieces = sorted(_pieces(_adjacency(peers, links)), key=len)
    if len(pieces) > 1:
        raise TopologyError(
            f"{where}: the graph is in {len(pieces)} pieces; link peers {_some(pieces[0])} to the others"
        )
    return Topology(peers, tuple(sorted({(min(link), max(link)) for link in links})))


def _adjacency(peers: int, edges: Iterable[tuple[int, int]]) -> list[set[int]]:
    linked: list[set[int]] = [set() for _ in range(peers)]
    for a, b in edges:
        linked[a].add(b)
        linked[b].add(a)
    return linked


def _pieces(linked: list[set[int]]) -> list[list[int]]:
    """Return the peers of each connected component, in ascending order."""
    pieces: list[list[int]] = []
    seen: set[int] = set()
    for first in range(len(linked)):
        if first in seen:
            continue
        piece, reached = set[int](), {first}
        while reached:
            piece |= reached
            reached = set().union(*(linked[peer] for peer in reached)) - piece
        pieces.append(sorted(piece))
        seen |= piece
    return pieces


def _some(peers: list[int]) -> str:
    return ", ".join(map(str, peers[:5])) + (" ..." if len(peers) > 5 else "")
