"""``dslth bench comm``: entropies, the baselines' messages and mixing, and a whole benchmark with real processes."""

import csv
import hashlib
import io
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from math import log2

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dslth import config, topology
from dslth.bench import comm, show
from dslth.bench.baselines import Loop, read_header
from dslth.bench.entropy import conditional_bits, mask_bits
from dslth.bench.methods import METHODS
from dslth.engines.supervisor import run_local
from dslth.errors import JoinError
from dslth.masks import packed_size
from dslth.run import sinks
from dslth.run.folder import RunFolder
from dslth.transport import Delivery

PROPERTY = settings(max_examples=50, deadline=None, database=None)
EXCHANGING = [name for name, method in METHODS.items() if method.exchanges]

# --- entropy --------------------------------------------------------------------------------------------------------


@PROPERTY
@given(st.integers(0, 3), st.lists(st.integers(0, 15), max_size=60))
def test_entropy_is_that_of_counting_by_hand(order, words):
    columns = [[word >> bit & 1 for word in words] for bit in range(order + 1)]
    bits, *past = (np.array(column, np.uint8) for column in columns)
    together = Counter(zip(*columns, strict=True))
    contexts = Counter(zip(*columns[1:], strict=True)) if order else Counter({(): len(words)})
    expected = sum(-n * log2(n / contexts[key[1:]]) for key, n in together.items())
    assert conditional_bits(bits, past) == pytest.approx(expected, abs=1e-9)


def test_entropy_of_known_cases():
    rng = np.random.default_rng(1)
    fair, other = (np.tile(np.array(pattern, np.uint8), 500) for pattern in ([0, 1, 1, 0], [0, 0, 1, 1]))
    assert conditional_bits(fair, []) == 2000
    assert conditional_bits(fair, [other]) == 2000  # independent
    assert conditional_bits(fair, [1 - fair]) == 0
    assert conditional_bits(np.zeros(9, np.uint8), []) == 0
    rare = (rng.permutation(1000) < 250).astype(np.uint8)
    assert conditional_bits(rare, []) == pytest.approx(1000 * (0.25 * 2 + 0.75 * log2(4 / 3)))


def test_masks_that_swing_are_known_from_the_last_two():
    rng = np.random.default_rng(2)
    even, odd = ([rng.integers(0, 2, n).astype(np.uint8) for n in (400, 100)] for _ in range(2))
    by_round = mask_bits([even, odd, even, odd])
    assert by_round[0][0] == by_round[0][1] == pytest.approx(500, rel=0.02)  # nothing is given
    assert by_round[1][0] == by_round[1][1]
    for given_last, given_two in by_round[2:]:
        assert given_last == pytest.approx(500, rel=0.02)
        assert given_two == 0


# --- methods --------------------------------------------------------------------------------------------------------


def peers_of(topology_file, name, graph=None, lr=None, **experiment):
    run = config.load(topology_file(graph=graph, **experiment))
    graph = topology.build(run.graph, run.experiment.seed)
    return [METHODS[name](peer, run, graph, lr) for peer in range(graph.peers)], graph


def exchange(peers, graph, round_):
    payloads = [peer.outgoing(round_) for peer in peers]
    for number, peer in enumerate(peers):
        peer.absorb({other: peer.decode(payloads[other]) for other in graph.neighbours(number)})


def spread(peers):
    models = torch.stack([peer.x for peer in peers])
    return float((models - models.mean(0)).norm())


@pytest.mark.parametrize("name", EXCHANGING)
def test_payloads_are_read_back_and_wrong_ones_refused(topology_file, name):
    peers, _ = peers_of(topology_file, name)
    peers[0].learn(0)
    payload = peers[0].outgoing(0)
    read, x = peers[1].decode(payload), peers[0].x
    match name:
        case "dpsgd":
            assert torch.equal(torch.from_numpy(read), x)
        case "dpsgd-fp16":
            assert torch.equal(torch.from_numpy(read), x.half().float())
        case "dpsgd-topk":
            indices, values = read
            assert len(indices) == len(x) // 100
            change = (x - peers[1].x).abs()  # they start alike
            assert set(indices) == set(change.topk(len(indices)).indices.tolist())
            assert np.array_equal(values, (x - peers[1].x)[indices].numpy())
            assert torch.equal(peers[0].said, peers[1].update(peers[1].heard[0], read))
        case "dispfl":
            assert torch.equal(read[0], peers[0].mask)
            assert torch.equal(read[1], x)
    assert len(payload) <= peers[0].largest
    for wrong in (b"", payload[:-1], payload + b"\0", payload[: len(payload) // 2]):
        with pytest.raises(ValueError, match="wrong"):
            peers[1].decode(wrong)


def test_sparse_payloads_that_lie_are_refused(topology_file):
    (peer, *_), _ = peers_of(topology_file, "dpsgd-topk")
    count, n = len(peer.x) // 100, len(peer.x)
    for indices in (np.arange(n - count + 1, n + 1), np.zeros(count), np.arange(count)[::-1]):
        with pytest.raises(ValueError, match="wrong-indices"):
            peer.decode(indices.astype("<u4").tobytes() + bytes(4 * count))
    (peer, *_), _ = peers_of(topology_file, "dispfl")
    payload = bytearray(peer.outgoing(0))
    assert len(peer.x) % 8
    payload[(len(peer.x) + 7) // 8 - 1] |= 1
    with pytest.raises(ValueError, match="wrong-padding"):
        peer.decode(bytes(payload))


@PROPERTY
@given(st.binary(max_size=20))
def test_no_bytes_but_a_header_make_a_header(message):
    try:
        round_, sender, payload = read_header(message)
    except ValueError:
        return
    assert type(round_) is type(sender) is int
    assert message.endswith(payload)


class Scripted:
    """A transport that delivers what a test wrote down, as if sent by neighbours, and then nothing."""

    def __init__(self, *messages):
        self.messages, self.sent = list(messages), []

    def connect(self, neighbour, address): ...
    def identify(self, route, neighbour): ...
    def link_bytes(self): ...

    def connected(self):
        return {1, 2}

    def send(self, neighbour, message):
        self.sent.append((neighbour, message))
        return True

    def receive(self, timeout):
        message = self.messages.pop(0) if self.messages else None  # None: a deadline passes
        if message is None:
            time.sleep(timeout)
        return None if message is None else Delivery(message, None)


def test_a_peer_takes_messages_of_this_round_and_later_ones_and_counts_the_others(topology_file):
    (peer, *_), _ = peers_of(topology_file, "dpsgd", rounds=2, deadline=0.1)
    payload = peer.outgoing(0)

    def said(round_, sender, content=payload):
        return msgpack.packb([round_, sender]) + content

    transport = Scripted(
        said(-1, 1, b""), said(-1, 2, b""),  # hellos
        said(0, 1), said(1, 1), said(0, 1), said(0, 7), said(0, 2, payload[1:]), said(9, 2), b"\xc1",
        said(0, 2), said(0, 2), b"", said(2**60, 2**60), said(2, 1, b""),  # peer 2 misses round 1
    )  # fmt: skip
    events = []
    loop = Loop(0, peer.run.experiment, peer, transport, [sinks.Call(events.append)], threading.Event())
    loop.join(["", "", ""], 5)
    finished = loop.play(io.StringIO())
    _, first, second, _ = events
    assert (first.missing, second.missing) == ((), (2,))
    assert finished.refused == {"out-of-turn": 4, "wrong-length": 1, "malformed": 3}
    assert finished.rounds_completed == 2
    sent = sum(link.payload_sent for event in events for link in event.links.values())
    received = sum(link.payload_received for event in events for link in event.links.values())
    assert (sent, received) == (4 * len(payload), 3 * len(payload))
    rounds = [read_header(message)[0] for neighbour, message in transport.sent if neighbour == 1]
    assert rounds == [-1, 0, 1, 2]


@pytest.mark.parametrize("lost", [False, True])
def test_who_sends_changes_stays_known_when_late_and_is_left_out_when_one_is_lost(topology_file, lost):
    (peer, other, _), _ = peers_of(topology_file, "dpsgd-topk", rounds=3, deadline=0.1)
    changes = []
    for round_ in range(3):
        other.learn(round_)
        changes.append(other.outgoing(round_))

    def said(round_, sender):
        return msgpack.packb([round_, sender]) + changes[round_]

    late = [] if lost else [said(0, 1)]
    transport = Scripted(
        msgpack.packb([-1, 1]), msgpack.packb([-1, 2]), said(0, 2), None, *late, said(1, 1), said(1, 2),
        said(2, 2), said(2, 1),
    )  # fmt: skip
    events = []
    loop = Loop(0, peer.run.experiment, peer, transport, [sinks.Call(events.append)], threading.Event())
    loop.join(["", "", ""], 5)
    finished = loop.play(io.StringIO())
    missing = [event.missing for event in events[1:-1]]
    if lost:
        assert missing == [(1,), (1,), (1,)]
        assert finished.refused == {"out-of-step": 2}
    else:
        assert missing == [(1,), (), ()]
        assert finished.refused == {}
        assert torch.equal(peer.heard[1], other.said)


def test_a_slow_device_takes_its_time(topology_file):
    experiment = {"rounds": 1, "deadline": 0.1}
    run = config.load(topology_file(peers={0: {"speed": 0.25}}, **experiment))
    peer = METHODS["sgd-alone"](0, run, topology.build(run.graph, run.experiment.seed), None)
    waited = []

    class Stop(threading.Event):
        def wait(self, timeout=None):
            waited.append(timeout)
            return False

    loop = Loop(0, run.experiment, peer, Scripted(), [], Stop())
    outer = time.perf_counter()
    with loop._slowed():
        inner = time.perf_counter()
        peer.learn(0)
        inner = time.perf_counter() - inner
    outer = time.perf_counter() - outer
    assert 3 * inner <= waited[0] <= 3 * outer  # four times as long in all


def test_a_neighbour_that_does_not_come_is_named(topology_file):
    (peer, *_), _ = peers_of(topology_file, "dpsgd")
    loop = Loop(0, peer.run.experiment, peer, Scripted(msgpack.packb([-1, 1])), [], threading.Event())
    with pytest.raises(JoinError, match=r"\[2\]"):
        loop.join(["", "", ""], 0.1)


def test_dpsgd_on_a_full_graph_agrees_and_alone_does_not(topology_file):
    graph = {"kind": "full", "peers": 4}
    together, edges = peers_of(topology_file, "dpsgd", graph)
    alone, _ = peers_of(topology_file, "sgd-alone", graph)
    apart = []
    for round_ in range(3):
        for peer in (*together, *alone):
            peer.learn(round_)
        assert spread(together) > 0.01
        before = torch.stack([peer.x for peer in together]).mean(0)
        exchange(together, edges, round_)
        assert spread(together) < 1e-4  # everybody's weights are 1/4
        assert torch.allclose(together[0].x, before, atol=1e-5)
        apart.append(spread(alone))
    assert apart[0] < apart[1] < apart[2]


@pytest.mark.parametrize(
    ("name", "rounds", "left"), [("dpsgd", 6, 0.1), ("dpsgd-fp16", 6, 0.1), ("dpsgd-topk", 300, 0.5)]
)
def test_gossip_on_a_ring_draws_models_together_and_keeps_their_mean(topology_file, name, rounds, left):
    peers, graph = peers_of(topology_file, name, {"kind": "ring", "peers": 5})
    for peer in peers:
        peer.learn(0)
    mean, first = torch.stack([peer.x for peer in peers]).mean(0), spread(peers)
    last = first
    for round_ in range(rounds):
        exchange(peers, graph, round_)
        if name == "dpsgd":
            assert spread(peers) < last
        last = spread(peers)
    assert last < left * first
    assert torch.allclose(torch.stack([peer.x for peer in peers]).mean(0), mean, atol=1e-5)


def test_dispfl_keeps_its_densities_moves_its_mask_and_averages_who_keeps(topology_file):
    peers, graph = peers_of(topology_file, "dispfl", algorithm={"density": 0.5})
    first = peers[0].mask.clone()
    assert not torch.equal(first, peers[1].mask)
    for peer in peers:
        peer.learn(0)
        assert not peer.x[~peer.mask].any()
    payloads = [peer.outgoing(0) for peer in peers]
    assert not torch.equal(peers[0].mask, first)
    assert all(k == pytest.approx(0.5, abs=0.01) for k in (m[1] for m in map(kept_by_layer, peers)))
    models, masks = [peer.x.clone() for peer in peers], [peer.mask for peer in peers]
    peers[0].absorb({other: peers[0].decode(payloads[other]) for other in graph.neighbours(0)})
    keepers = torch.stack(masks).sum(0)
    expected = torch.where(masks[0], torch.stack(models).sum(0) / keepers.clamp(min=1), torch.zeros(()))
    assert torch.allclose(peers[0].x, expected, atol=1e-6)


def kept_by_layer(peer):
    return [float(part.float().mean()) for part in torch.split(peer.mask, peer.net.lengths)][::2]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns(topology_file, name):
    peers, graph = peers_of(topology_file, name, rounds=12)
    start = np.mean([peer.evaluate(peer.x).personal for peer in peers])
    for round_ in range(12):
        for peer in peers:
            peer.learn(round_)
        if peers[0].exchanges:
            exchange(peers, graph, round_)
    assert np.mean([peer.evaluate(peer.x).personal for peer in peers]) > max(0.75, start + 0.2)


# --- the benchmark --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Run all rows once: three peers, an mlp, digits, three rounds."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "small.yaml").write_text(
        "graph: {kind: ring, peers: 3}\nexperiment: {rounds: 3, seed: 7, model: {name: mlp}}\n"
    )
    line = "import sys; from dslth.__main__ import main; sys.argv[0] = 'dslth'; main()"
    arguments = ["bench", "comm", "-t", "small.yaml", "--target", "0.5", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", line, *arguments], cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", done


def test_the_benchmark_measures_every_row(benchmark):
    folder, done = benchmark
    result = json.loads((folder / "comm.json").read_text())
    rows = {row["row"]: row for row in result["rows"]}
    assert list(rows) == list(comm.ROWS)
    assert result["settings"]["experiment"]["seed"] == 7
    lossless = [name for name, row in comm.ROWS.items() if row.codec]
    assert {"mce-bitpack", "mce-range", "mce-delta", "mce-context", "mce-auto"} <= set(lossless)
    for name, row in rows.items():
        assert row["same_masks"] is (True if name in lossless else None), name
        assert row["missing"] == row["refused"] == 0, name
        assert 0 < row["accuracy_worst"] <= row["accuracy_personal"] <= 1
        assert len(row["curve"]) == len(row["bits_by_round"]) == 3
        if name.endswith("alone"):
            assert row["message_bytes"] == row["payload_bytes"] == 0
        else:
            assert row["payload_bytes"] < row["message_bytes"] < row["link_bytes"]
            assert row["curve"][-1][1] <= row["message_bytes"]
    weights = 64 * 256 + 256 * 128 + 128 * 10
    biases = 256 + 128 + 10
    assert rows["mce-bitpack"]["bits_per_weight"] == 1
    assert rows["dpsgd"]["payload_bytes"] == 4 * (weights + biases) * 6 * 3
    assert rows["dpsgd-fp16"]["payload_bytes"] == 2 * (weights + biases) * 6 * 3
    assert rows["dpsgd"]["to_dpsgd_ratio"] == 1
    assert rows["mce-bitpack"]["message_bytes_to_target"] in [sent for _, sent, _ in rows["mce-bitpack"]["curve"]]
    for name in lossless:
        assert rows[name]["curve"][-1][2] == rows["mce-bitpack"]["curve"][-1][2]
        assert rows[name]["entropy_given_last_1"] == rows["mce-bitpack"]["entropy_given_last_1"]
    # without a past it is the entropy of the density, which the range codec spends
    assert rows["mce-range"]["bits_by_round"][0] == pytest.approx(rows["mce-range"]["bounds_by_round"][0][0], rel=0.01)
    assert 0 < rows["mce-auto"]["entropy_given_last_2"] < rows["mce-auto"]["entropy_given_last_1"] < 0.6
    assert "mce-no-lift" in done.stdout
    assert len(done.stderr.strip().splitlines()) == len(rows)


def test_the_benchmark_writes_tables_and_plots(benchmark):
    folder, _ = benchmark
    records = json.loads((folder / "comm.json").read_text())["rows"]
    with (folder / "comm.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["row"] for row in table] == list(comm.ROWS)
    assert set(table[0]) == {key for key, value in records[0].items() if not isinstance(value, list)}
    assert float(table[0]["accuracy_personal"]) == records[0]["accuracy_personal"]
    lines = (folder / "comm.md").read_text().splitlines()
    for name in comm.ROWS:
        assert sum(line.startswith((f"| {name} ", f"| {name}*")) for line in lines) == 2
    assert len({line.count("|") for line in lines if line.startswith("|")}) <= 2
    for name in ("accuracy.png", "bits.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob("rows/*/masks"))


def test_an_unknown_row_is_named(commands, topology_file):
    done = commands.run("dslth", "bench", "comm", "-t", topology_file(), "--rows", "mce-auto,fedavg")
    assert done.returncode == 3
    assert "fedavg" in done.stderr
    assert "dpsgd-topk" in done.stderr


def test_without_matplotlib_there_are_no_plots(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert show.plot([], tmp_path) is False
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lift", [True, False])
def test_what_is_recorded_is_what_was_sent(topology_file, tmp_path, lift):
    run = config.load(topology_file())
    folder = RunFolder(tmp_path / "run")
    graph = topology.build(run.graph, run.experiment.seed)
    run_local(run, graph, folder, transport="memory", method=partial(comm.recorded, lift=lift))
    size = packed_size(folder.events()[0][0].sizes)
    for peer, (_, *rounds, _) in folder.events().items():
        packed = (folder.path / "masks" / f"peer-{peer}.bits").read_bytes()
        assert len(packed) == 3 * size
        for number, event in enumerate(rounds):
            assert hashlib.sha256(packed[number * size :][:size]).hexdigest() == event.mask_digest


def test_masks_that_differ_once_are_not_the_same(benchmark):
    folder, _ = benchmark
    rows = [comm.ROWS["mce-bitpack"], comm.ROWS["mce-delta"], comm.ROWS["mce-no-lift"], comm.ROWS["mce-range"]]
    measured = [comm.measure(row, RunFolder(folder / "rows" / row.name), None) for row in rows]
    changed = measured[3].digests | {(2, 1): "0" * 64}
    compared = comm.compare([*measured[:3], replace(measured[3], digests=changed)], None)
    assert [figures.same_masks for figures in compared] == [True, True, None, False]
    assert measured[2].digests != measured[0].digests


def test_bytes_to_an_accuracy_are_those_of_the_first_round_that_has_it(benchmark):
    folder, _ = benchmark
    row = comm.ROWS["mce-bitpack"]
    figures = comm.measure(row, RunFolder(folder / "rows" / row.name), None)
    figures = replace(figures, curve=[(0, 10, 0.2), (1, 20, 0.6), (2, 30, 0.5), (3, 40, 0.7)])
    assert [figures.bytes_to(a) for a in (0.1, 0.2, 0.5, 0.65, 0.7, 0.8)] == [10, 10, 20, 40, 40, None]
