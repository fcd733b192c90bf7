"""The graph of peers: every kind, every file format, every way to get it wrong."""

import os
import random
import re
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dslth import config
from dslth.errors import MissingFileError, TopologyError
from dslth.show.graph import topology_table
from dslth.topology import MOST_PEERS, Topology, build, read_graph

PROPERTY = settings(max_examples=50, deadline=None, database=None)

GRAPHML = """<?xml version="1.0" encoding="utf-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="undirected">{}</graph></graphml>
"""

seeds = st.none() | st.integers(0, 2**40)


def _random_regular(degree: int, peers: int, seed: int | None) -> config.RandomRegular:
    peers = max(peers, degree + 1)
    return config.RandomRegular(kind="random-regular", degree=degree, peers=peers + degree * peers % 2, seed=seed)


def _small_world(neighbours: int, more: int, p: float, seed: int | None) -> config.SmallWorld:
    return config.SmallWorld(kind="small-world", neighbours=neighbours, peers=max(3, neighbours + more), p=p, seed=seed)


regular_kinds = st.one_of(
    st.builds(config.Ring, kind=st.just("ring"), peers=st.integers(3, 30)),
    st.builds(config.Line, kind=st.just("line"), peers=st.integers(2, 30)),
    st.builds(config.Star, kind=st.just("star"), peers=st.integers(2, 30)),
    st.builds(config.Full, kind=st.just("full"), peers=st.integers(2, 15)),
    st.builds(config.Grid, kind=st.just("grid"), rows=st.integers(1, 6), columns=st.integers(2, 6)),
    st.builds(config.Torus, kind=st.just("torus"), rows=st.integers(3, 6), columns=st.integers(3, 6)),
)
random_kinds = st.one_of(
    st.builds(
        config.ErdosRenyi, kind=st.just("erdos-renyi"), peers=st.integers(2, 20), p=st.floats(0.4, 1), seed=seeds
    ),
    st.builds(_small_world, st.integers(2, 6), st.integers(0, 10), st.floats(0, 0.3), seeds),
    st.builds(_random_regular, st.integers(2, 5), st.integers(3, 14), seeds),
)


@st.composite
def edge_lists(draw: st.DrawFn) -> config.Edges:
    """Draw a random tree plus some more edges, in any order and direction, some of them twice."""
    peers = draw(st.integers(2, 20))
    rng = random.Random(draw(st.integers(0, 2**32)))
    edges = [(rng.randrange(i), i) for i in range(1, peers)]
    edges += [(a, b) for a, b in [(rng.randrange(peers), rng.randrange(peers)) for _ in range(peers)] if a != b]
    edges = [edge[::-1] if rng.random() < 0.5 else edge for edge in edges]
    rng.shuffle(edges)
    return config.Edges(kind="edges", peers=peers, edges=tuple(edges))


all_kinds = st.one_of(regular_kinds, random_kinds, edge_lists())


def reached(graph: Topology) -> set[int]:
    """Walk from peer 0 to every peer that can be reached."""
    seen, todo = {0}, [0]
    while todo:
        new = set(graph.neighbours(todo.pop())) - seen
        seen |= new
        todo += new
    return seen


# --- properties -----------------------------------------------------------------------------------------------------


@PROPERTY
@given(all_kinds, st.integers(0, 2**40))
def test_every_graph_is_undirected_connected_and_without_loops(wanted: config.GraphConfig, seed: int) -> None:
    graph = build(wanted, seed)
    for peer in range(graph.peers):
        neighbours = graph.neighbours(peer)
        assert peer not in neighbours
        assert list(neighbours) == sorted(set(neighbours))
        assert all(peer in graph.neighbours(other) for other in neighbours)
    assert reached(graph) == set(range(graph.peers))
    assert list(graph.edges) == sorted({(a, b) for a in range(graph.peers) for b in graph.neighbours(a) if a < b})


@PROPERTY
@given(all_kinds, st.integers(0, 2**40))
def test_same_words_and_seed_give_the_same_graph(wanted: config.GraphConfig, seed: int) -> None:
    graph, again = build(wanted, seed), build(wanted, seed)
    assert graph == again
    assert graph.digest == again.digest


@PROPERTY
@given(all_kinds, st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_graph_written_as_edges_is_the_same_graph(wanted: config.GraphConfig, seed: int, other: int) -> None:
    graph = build(wanted, seed)
    assert build(graph.to_config(), other) == graph


@PROPERTY
@given(random_kinds, st.integers(0, 2**40), st.integers(0, 2**40))
def test_the_graphs_own_seed_wins_over_the_runs(wanted: config.GraphConfig, graph_seed: int, run_seed: int) -> None:
    own = wanted.model_copy(update={"seed": graph_seed})
    assert build(own, run_seed) == build(wanted.model_copy(update={"seed": None}), graph_seed)


@pytest.mark.parametrize(
    "wanted",
    [
        config.ErdosRenyi(kind="erdos-renyi", peers=20, p=0.4),
        config.SmallWorld(kind="small-world", peers=20, neighbours=4, p=0.5),
        config.RandomRegular(kind="random-regular", peers=20, degree=3),
    ],
    ids=lambda wanted: wanted.kind,
)
def test_another_seed_gives_another_graph(wanted: config.GraphConfig) -> None:
    assert len({build(wanted, seed).digest for seed in range(10)}) == 10


@pytest.mark.parametrize(
    ("wanted", "seed", "digest"),
    [
        (config.ErdosRenyi(kind="erdos-renyi", peers=20, p=0.3), 1, "f600b6b21ba4b4a8"),
        (config.ErdosRenyi(kind="erdos-renyi", peers=20, p=0.3, seed=5), 1, "f0bf2672d9ff0416"),
        (config.SmallWorld(kind="small-world", peers=16, neighbours=4, p=0.2), 7, "0e3e7325e97d6b08"),
        (config.RandomRegular(kind="random-regular", peers=12, degree=3), 7, "8681fbfa1eea4e72"),
    ],
    ids=["erdos-renyi", "erdos-renyi-own-seed", "small-world", "random-regular"],
)
def test_every_process_draws_this_graph(wanted: config.GraphConfig, seed: int, digest: str) -> None:
    assert build(wanted, seed).digest == digest


def test_digest_tells_graphs_of_other_size_or_edges_apart() -> None:
    graphs = [
        Topology(3, ((0, 1), (1, 2))),
        Topology(3, ((0, 1), (0, 2))),
        Topology(3, ((0, 1), (0, 2), (1, 2))),
        Topology(4, ((0, 1), (1, 2))),
    ]
    assert len({graph.digest for graph in graphs}) == len(graphs)
    assert all(re.fullmatch("[0-9a-f]{16}", graph.digest) for graph in graphs)


# --- what each kind looks like --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 4, 10])
def test_ring_links_each_peer_to_the_next_and_the_last_to_the_first(n: int) -> None:
    graph = build(config.Ring(kind="ring", peers=n), 1)
    assert [set(graph.neighbours(i)) for i in range(n)] == [{(i - 1) % n, (i + 1) % n} for i in range(n)]


def test_line_star_and_full() -> None:
    assert build(config.Line(kind="line", peers=4), 1).edges == ((0, 1), (1, 2), (2, 3))
    assert build(config.Star(kind="star", peers=4), 1).edges == ((0, 1), (0, 2), (0, 3))
    assert build(config.Full(kind="full", peers=4), 1).edges == ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (4, 1), (3, 4), (4, 3), (12, 11)])
def test_grid_is_row_major(rows: int, columns: int) -> None:
    graph = build(config.Grid(kind="grid", rows=rows, columns=columns), 1)
    assert graph.peers == rows * columns
    for row in range(rows):
        for column in range(columns):
            beside = [(row, column - 1), (row, column + 1), (row - 1, column), (row + 1, column)]
            expected = sorted(r * columns + c for r, c in beside if 0 <= r < rows and 0 <= c < columns)
            assert list(graph.neighbours(row * columns + column)) == expected


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (3, 4), (5, 11)])
def test_torus_is_a_grid_with_linked_borders(rows: int, columns: int) -> None:
    graph = build(config.Torus(kind="torus", rows=rows, columns=columns), 1)
    for row in range(rows):
        for column in range(columns):
            beside = [(row, column - 1), (row, column + 1), (row - 1, column), (row + 1, column)]
            expected = sorted((r % rows) * columns + c % columns for r, c in beside)
            assert list(graph.neighbours(row * columns + column)) == expected


@PROPERTY
@given(st.integers(2, 5), st.integers(3, 14), st.integers(0, 2**40))
def test_random_regular_gives_every_peer_its_degree(degree: int, peers: int, seed: int) -> None:
    wanted = _random_regular(degree, peers, None)
    graph = build(wanted, seed)
    assert [len(graph.neighbours(i)) for i in range(wanted.peers)] == [degree] * wanted.peers


def test_small_world_without_rewiring_is_a_ring_with_more_links() -> None:
    graph = build(config.SmallWorld(kind="small-world", peers=9, neighbours=4, p=0), 3)
    assert all(set(graph.neighbours(i)) == {(i + d) % 9 for d in (-2, -1, 1, 2)} for i in range(9))


def test_small_world_keeps_the_number_of_links_when_rewired() -> None:
    graph = build(config.SmallWorld(kind="small-world", peers=20, neighbours=4, p=0.5), 3)
    assert len(graph.edges) == 40
    assert graph.edges != build(config.SmallWorld(kind="small-world", peers=20, neighbours=4, p=0), 3).edges


def test_sparse_random_graph_is_drawn_again_until_in_one_piece() -> None:
    wanted = config.ErdosRenyi(kind="erdos-renyi", peers=12, p=0.15)
    assert all(reached(build(wanted, seed)) == set(range(12)) for seed in range(10))


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs") / "graph"


def matrix(graph: Topology, separator: str) -> str:
    linked = {*graph.edges, *((b, a) for a, b in graph.edges)}
    n = graph.peers
    return "\n".join(separator.join(str(int((i, j) in linked)) for j in range(n)) for i in range(n)) + "\n"


def edge_lines(graph: Topology, separator: str) -> str:
    return "".join(f"{a}{separator}{b}\n" for a, b in graph.edges)


@PROPERTY
@given(edge_lists(), st.sampled_from([" ", ",", ", ", "\t", "  "]))
def test_every_text_format_reads_back_the_same_graph(scratch: Path, wanted: config.Edges, separator: str) -> None:
    graph = build(wanted, 1)
    for text in (
        matrix(graph, separator),
        edge_lines(graph, separator),
        f"{graph.peers}\n{edge_lines(graph, separator)}",
        f"# a comment, 1 2 3\n\n  # another\n{graph.peers}\n\n{edge_lines(graph, separator)}# the end",
        f"# size: {graph.peers}\n" + matrix(graph, separator).replace("\n", "\n\n"),
        edge_lines(graph, separator).replace("\n", "\r\n"),
    ):
        scratch.write_text(text, encoding="utf-8", newline="")
        assert read_graph(scratch) == graph


@PROPERTY
@given(edge_lists(), st.randoms(use_true_random=False))
def test_graphml_with_numbers_as_names_keeps_the_numbers(
    scratch: Path, wanted: config.Edges, rng: random.Random
) -> None:
    graph = build(wanted, 1)
    order = list(range(graph.peers))
    rng.shuffle(order)
    written: nx.Graph[int] = nx.Graph()
    written.add_nodes_from(order)
    written.add_edges_from(graph.edges)
    nx.write_graphml(written, scratch)
    assert read_graph(scratch) == graph


@PROPERTY
@given(edge_lists())
def test_graphml_with_names_is_numbered_in_the_files_order(scratch: Path, wanted: config.Edges) -> None:
    graph = build(wanted, 1)
    names = [f"host-{(7 * i) % 101}" for i in range(graph.peers)]  # not in alphabetical order
    written: nx.Graph[str] = nx.Graph()
    written.add_nodes_from(names)
    written.add_edges_from((names[a], names[b]) for a, b in graph.edges)
    nx.write_graphml(written, scratch)
    assert read_graph(scratch) == graph


def test_directed_graphml_counts_as_undirected(tmp_path: Path) -> None:
    path = tmp_path / "directed.graphml"
    nx.write_graphml(nx.DiGraph([("a", "b"), ("b", "a"), ("c", "b")]), path)
    assert read_graph(path) == Topology(3, ((0, 1), (1, 2)))


def test_two_peers_can_be_written_in_every_format(tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    for text in ("0 1\n1 0\n", "0 1\n", "1,0", "2\n0 1\n", "2\n1 0\n0 1"):
        path.write_text(text)
        assert read_graph(path) == Topology(2, ((0, 1),))


def test_node_count_on_top_may_only_be_met_exactly(tmp_path: Path) -> None:
    path = tmp_path / "count.txt"
    path.write_text("3\n0 1\n1 2\n")
    assert read_graph(path).peers == 3
    path.write_text("4\n0 1\n1 2\n")
    with pytest.raises(TopologyError, match=r"2 pieces; link peers 3 to"):
        read_graph(path)


def test_a_graph_file_is_built_like_any_other_kind(tmp_path: Path) -> None:
    path = tmp_path / "graph.txt"
    path.write_text("0 1\n1 2\n2 0\n")
    assert build(config.GraphFile(kind="file", file=str(path)), 9) == build(config.Ring(kind="ring", peers=3), 1)


def test_the_authors_graph_is_read() -> None:
    path = Path(__file__).parents[2] / "shared" / "data" / "paper20_adjacency.txt"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    graph = read_graph(path)
    table = np.loadtxt(path, dtype=int)
    assert [len(graph.neighbours(i)) for i in range(20)] == table.sum(1).tolist()
    assert all(table[edge] for edge in graph.edges)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\n  \n# only a comment\n", "empty"),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "not a text file"),
        (b"Dear reader,\nthis is a letter.\n", "neither"),
        (b"0 1\n1 2.5\n", "neither"),
        (b"0 1\n1 2 3\n", "txt:2: neither a row"),
        (b"0 1\n-1 0\n", "txt:2: neither a row"),
        (b"0 2 0\n2 0 1\n0 1 0\n", "txt:1: neither a row"),
        (b"0 1 0\n1 0 1\n", "txt:1: neither a row"),
        (b"0 1 1\n1 0 1\n0 1 0\n", "not symmetric, see peers 0 and 2"),
        (b"1 1\n1 0\n", "peer 0 is linked to itself"),
        (b"0 1\n1 2\n2 2\n", "peer 2 is linked to itself"),
        (b"0 1\n2 3\n3 4\n", "in 2 pieces; link peers 0, 1 to"),
        (b"0 1 0\n1 0 0\n0 0 0\n", "in 2 pieces; link peers 2 to"),
        (b"# 4242 4242 4242\n\n3\n0 1\n4242\n", "txt:5: neither a row"),
        (b"6\n0 1\n", "in 5 pieces"),
        (b"10001\n0 1\n", "too many peers; a run has 10,000 at the most"),
        (b"0 10000\n", "too many peers"),
        (b"0 " + 4300 * b"9", "too many peers"),
        (b"3\n0 1\n1 2\n2 3\n", "names peer 3, but there are peers 0 to 2"),
        (b"1\n", r"1 peer\(s\)"),
        (b"0\n", r"0 peer\(s\)"),
        (b"<graphml", "not GraphML"),
        (b"<html><body>404</body></html>", "not GraphML"),
        (GRAPHML.format('<node id="a"/><edge source="a" target="a"/>').encode(), "linked to itself"),
        (GRAPHML.format('<node id="a"/><node id="b"/>').encode(), "in 2 pieces"),
        (GRAPHML.format("").encode(), r"0 peer\(s\)"),
        (GRAPHML.format("<node/><node/>").encode(), "every node needs an id of its own; 2 nodes, 1 ids"),
        (GRAPHML.format('<node id="a"/><node/><edge source="a" target="a"/>').encode(), "every node needs an id"),
        (GRAPHML.format('<node id="a"/><node id="a"/>').encode(), "every node needs an id of its own"),
        (GRAPHML.format('<node id="a"/><edge source="a" target="b"/>').encode(), "names the node 'b', which is not"),
        (GRAPHML.format('<node id="a"/><edge source="a"/>').encode(), "names the node 'None', which is not"),
        (GRAPHML.format('<node id="a"><data key="k"/></node>').encode(), "not GraphML"),
    ],
)
def test_a_file_that_is_no_graph_to_learn_on_is_refused_by_name(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "made elsewhere.txt"
    path.write_bytes(content)
    with pytest.raises(TopologyError, match=says) as caught:
        read_graph(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def short_numbers(content: bytes) -> bool:
    """Leave out what would ask for a graph of 10,000 peers and more."""
    return not re.search(rb"\d{5}", content)


@PROPERTY
@given((st.binary(max_size=60) | st.text("01 ,\n#<2-", max_size=40).map(str.encode)).filter(short_numbers))
def test_any_file_is_a_graph_or_a_topology_error(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    try:
        graph = read_graph(scratch)
    except TopologyError:
        return
    assert reached(graph) == set(range(graph.peers))


PIECES = [
    *[
        "<node/>",
        "<edge/>",
        "<data/>",
        "<graph>",
        "</graph>",
        "</graphml>",
        "<hyperedge/>",
        "&amp;",
        "&a;",
        "<!--",
        "<port/>",
    ],
    *[
        '<node id="a"/>',
        '<node id="b"/>',
        '<edge source="a" target="b"/>',
        '<edge source="b"/>',
        '<data key="k">1</data>',
    ],
    *[
        '<key id="k"/>',
        '<key id="k" for="edge" attr.name="n" attr.type="int"/>',
        '<node id="a"><data key="k">x</data></node>',
    ],
]


@PROPERTY
@given(st.lists(st.sampled_from(PIECES), max_size=8))
def test_any_graphml_is_a_graph_or_a_topology_error(scratch: Path, pieces: list[str]) -> None:
    scratch.write_text(GRAPHML.format("".join(pieces)))
    try:
        graph = read_graph(scratch)
    except TopologyError:
        return
    assert reached(graph) == set(range(graph.peers))


@pytest.mark.parametrize("name", ["absent.txt", ".", 300 * "long"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(MissingFileError, match=re.escape(str(path))):
        build(config.GraphFile(kind="file", file=str(path)), 1)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (config.RandomRegular(kind="random-regular", peers=5, degree=3), "graph.degree: no graph gives 5 peers 3"),
        (config.RandomRegular(kind="random-regular", peers=4, degree=4), "graph.degree: no graph gives 4 peers 4"),
        (config.RandomRegular(kind="random-regular", peers=6, degree=1), "in pieces"),
        (config.SmallWorld(kind="small-world", peers=4, neighbours=6, p=0.1), "graph.neighbours: 6 links for each"),
        (config.ErdosRenyi(kind="erdos-renyi", peers=40, p=0.001), "in pieces; raise p"),
        (config.Grid(kind="grid", rows=1, columns=1), r"1 peer\(s\)"),
        (config.Edges(kind="edges", peers=3, edges=((0, 1),)), "graph.edges: .* 2 pieces; link peers 2 to"),
        (config.Edges(kind="edges", peers=3, edges=((0, 1), (1, 2), (2, 2))), "graph.edges: peer 2 is linked to it"),
        (config.Edges(kind="edges", peers=3, edges=((0, 1), (1, 3))), "graph.edges: an edge names peer 3"),
        (config.Edges(kind="edges", peers=3, edges=((0, 1), (1, -1))), "graph.edges: an edge names peer -1"),
    ],
    ids=lambda value: value.kind if isinstance(value, config.Settings) else None,
)
def test_a_graph_that_cannot_be_is_refused(wanted: config.GraphConfig, says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        build(wanted, 1)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (config.Ring(kind="ring", peers=1_999_999), "too many peers; a run has 10,000 at the most"),
        (config.Ring(kind="ring", peers=10_001), "too many peers"),
        (config.Star(kind="star", peers=config.MOST), "too many peers"),
        (config.Full(kind="full", peers=2002), "2,003,001 links are too many, 2,000,000 the most"),
        (config.Torus(kind="torus", rows=config.MOST, columns=3), "too many peers"),
        (config.Grid(kind="grid", rows=1001, columns=1001), "too many peers"),
        (config.ErdosRenyi(kind="erdos-renyi", peers=10_000, p=1e-9), "links are too many"),
        (config.SmallWorld(kind="small-world", peers=config.MOST, neighbours=2, p=0), "too many peers"),
        (config.RandomRegular(kind="random-regular", peers=config.MOST, degree=2), "too many peers"),
        (config.Edges(kind="edges", peers=config.MOST, edges=((0, 1),)), "too many peers"),
    ],
    ids=lambda value: value.kind if isinstance(value, config.Settings) else None,
)
def test_a_graph_that_no_machine_holds_is_refused_at_once(wanted: config.GraphConfig, says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        build(wanted, 1)


def test_the_largest_ring_is_made_and_shown() -> None:
    graph = build(config.Ring(kind="ring", peers=MOST_PEERS), 1)
    assert len(graph.edges) == graph.peers == 10_000
    assert topology_table(graph).row_count == 6


@pytest.mark.parametrize("special", ["/dev/zero", "pipe"])
def test_what_is_no_file_is_no_graph(tmp_path: Path, special: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MissingFileError, match="not a regular file"):
        read_graph(tmp_path / special)


def test_a_file_too_large_to_be_a_graph_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(MissingFileError, match="larger than 33,554,432 bytes"):
        read_graph(path)


@pytest.mark.parametrize(("peers", "degree"), [(100, 98), (100, 90), (100, 99), (101, 50), (2, 1)])
def test_a_dense_random_regular_graph_is_made_as_fast_as_a_thin_one(peers: int, degree: int) -> None:
    graph = build(config.RandomRegular(kind="random-regular", peers=peers, degree=degree), 1)
    assert [len(graph.neighbours(peer)) for peer in range(peers)] == [degree] * peers


def test_many_unlinked_peers_are_listed_in_short() -> None:
    with pytest.raises(TopologyError, match=r"link peers 0, 1, 2, 3, 4 \.\.\. to the others"):
        build(config.Edges(kind="edges", peers=14, edges=tuple((i, i + 1) for i in range(13) if i != 6)), 1)
