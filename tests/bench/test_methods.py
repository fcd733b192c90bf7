"""The compared methods: what they learn and mix, and whole runs of them in the loop that all peers have."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dslth import config, topology
from dslth.bench.methods import METHODS, Compared, dadpfl
from dslth.config import TransportName
from dslth.engines.base import PeerJob, mask_learner
from dslth.engines.supervisor import run_local
from dslth.errors import WrongRunError
from dslth.runs.events import RoundReport
from dslth.runs.folder import RunFolder
from dslth.runs.sinks import Call
from dslth.transport.faulty import Faults
from live import digests, rounds_of, what_happened

EXCHANGING = [name for name in METHODS if name != "sgd-alone"]
exchanging = pytest.mark.parametrize("name", EXCHANGING)


@pytest.fixture
def peers_of(topology_file, tmp_path):
    """Make the method of each peer of a small run."""

    def make(name, graph=None, values=None, **experiment):
        run = config.load(topology_file(graph=graph, **experiment))
        edges = topology.build(run.graph, run.experiment.seed)
        folder = RunFolder(tmp_path / name)
        (folder.path / "peers").mkdir(parents=True, exist_ok=True)
        jobs = [PeerJob(peer, run, edges, folder) for peer in range(edges.peers)]
        return [Compared(name, values or {})(job) for job in jobs], edges

    return make


def play(peers, graph, round_):
    """Play a round without a network."""
    messages = [peer.local_update(round_)[0] for peer in peers]
    for number, peer in enumerate(peers):
        peer.fine_tune({other: messages[other] for other in graph.neighbours(number)})
    return messages


def spread(peers):
    models = torch.stack([peer.x for peer in peers])
    return float((models - models.mean(0)).norm())


def mean(peers):
    return torch.stack([peer.x for peer in peers]).mean(0)


@exchanging
def test_what_is_said_is_the_model(peers_of, name):
    (peer, *_), _ = peers_of(name)
    first = peer.x
    message, _ = peer.local_update(0)
    said, x = torch.from_numpy(message.values), peer.x
    match name:
        case "dpsgd" | "dpsgd-tuned" | "ditto" | "dispfl" | "da-dpfl":
            assert torch.equal(said, x)
        case "jwins":
            waves, mask = peer._waves(x), message.mask
            assert np.array_equal(said.numpy()[mask], waves[mask])
            changes = np.abs(waves - peer._waves(first))
            assert changes[mask].min() >= changes[~mask].max(initial=0)
            assert torch.allclose(peer._parameters(waves), x, atol=1e-6)
        case "fedpm" | "fedpm-klms":
            weights = torch.sigmoid(peer.x)[peer.net.first != 0]
            assert set(said.tolist()) == {0, 1}
            for low in (0.0, 0.2, 0.4, 0.6, 0.8):
                among = (low <= weights) & (weights < low + 0.2)
                assert said[among].mean() == pytest.approx(low + 0.1, abs=0.02)
        case "fedrep":
            head = 128 * 10 + 10
            assert torch.equal(said[:-head], x[:-head])
            assert not said[-head:].any()
        case "dpsgd-fp16":
            assert torch.equal(said, x.half().float())
        case "choco":
            changed = (said - first).nonzero()[:, 0]
            assert len(changed) == len(x) // 100
            assert set(changed.tolist()) == set((x - first).abs().topk(len(changed)).indices.tolist())
            assert ((said - x)[changed].abs() <= (x - first)[changed].abs().max() / 14 + 1e-6).all()


def test_dpsgd_on_a_full_graph_agrees_and_alone_does_not(peers_of):
    graph = {"kind": "full", "peers": 4}
    together, edges = peers_of("dpsgd", graph)
    alone, _ = peers_of("sgd-alone", graph)
    apart = []
    for round_ in range(3):
        messages = [peer.local_update(round_)[0] for peer in together]
        assert spread(together) > 0.01
        before = mean(together)
        for number, peer in enumerate(together):
            peer.fine_tune({other: messages[other] for other in edges.neighbours(number)})
        assert spread(together) < 1e-4  # everybody's weights are 1/4
        assert torch.allclose(together[0].x, before, atol=1e-5)
        play(alone, edges, round_)
        apart.append(spread(alone))
    assert apart[0] < apart[1] < apart[2]


def test_fine_tuning_is_dpsgd_until_its_last_rounds_which_a_peer_spends_alone(peers_of):
    tuned, graph = peers_of("dpsgd-tuned", values={"alone": 0.4}, rounds=5)
    plain, _ = peers_of("dpsgd", rounds=5)
    said = [play(tuned, graph, round_) for round_ in range(3)]
    assert said == [play(plain, graph, round_) for round_ in range(3)]
    learned = [peer.x for peer in tuned]
    for round_ in (3, 4):
        assert play(tuned, graph, round_) == said[-1]
    for peer, before, other in zip(tuned, learned, plain, strict=True):
        assert not torch.equal(peer.x, before)
        other.local_update(3)
        other.local_update(4)
        assert torch.equal(peer.x, other.x)


@pytest.mark.parametrize(("name", "rounds", "left"), [("dpsgd", 6, 0.1), ("dpsgd-fp16", 6, 0.1), ("choco", 80, 0.8)])
def test_gossip_on_a_ring_draws_models_together_and_keeps_their_mean(peers_of, name, rounds, left):
    peers, graph = peers_of(name, {"kind": "ring", "peers": 5}, algorithm={"batch": 8})
    for peer in peers:
        peer.local_update(0)
        peer.lr = 0.0  # from here on nobody learns
    average, first = mean(peers), spread(peers)
    last = first
    for round_ in range(1, rounds):
        play(peers, graph, round_)
        if name == "dpsgd":
            assert spread(peers) < last
        last = spread(peers)
    assert last < left * first
    assert torch.allclose(mean(peers), average, atol=1e-5)


@pytest.mark.parametrize("head", [0.0, 0.5])
def test_fedrep_averages_bodies_and_never_heads(peers_of, head):
    full, own = {"kind": "full", "peers": 3}, 128 * 10 + 10
    peers, graph = peers_of("fedrep", full, {"head": head}, algorithm={"local_steps": 1})
    for round_ in range(2):
        before = [peer.x for peer in peers]
        messages = [peer.local_update(round_)[0] for peer in peers]
        learned = [peer.x for peer in peers]
        for x, after in zip(before, learned, strict=True):
            assert torch.equal(x[:-own], after[:-own]) == (head > 0 and round_ == 1)
            assert torch.equal(x[-own:], after[-own:]) == (head > 0 and round_ == 0)
        for number, peer in enumerate(peers):
            peer.fine_tune({other: messages[other] for other in graph.neighbours(number)})
            assert torch.allclose(peer.x[:-own], torch.stack(learned).mean(0)[:-own], atol=1e-5)
            assert torch.equal(peer.x[-own:], learned[number][-own:])


def test_ditto_draws_its_personal_model_to_the_common_one(peers_of):
    after = []
    for pull in (0.0, 0.1):
        (peer, *_), _ = peers_of("ditto", values={"pull": pull, "personal": 1.0}, algorithm={"local_steps": 1})
        peer.v = peer.x + 1
        peer.local_update(0)
        after.append(peer.v)
    assert torch.allclose(after[0] - after[1], torch.full_like(after[0], peer.lr * 0.1), atol=1e-6)
    assert torch.equal(peer.x, peer.net.first)


def test_ditto_splits_the_steps_that_others_take(peers_of):
    (ditto, *_), _ = peers_of("ditto", values={"personal": 0.25}, algorithm={"local_steps": 4})
    (plain, *_), _ = peers_of("dpsgd", values={"lr": ditto.lr}, algorithm={"local_steps": 3})
    ditto.local_update(0)
    plain.local_update(0)
    assert torch.equal(ditto.x, plain.x)


@pytest.mark.parametrize("name", ["fedpm", "fedpm-klms"])
def test_fedpm_counts_masks_as_a_beta_distribution_does_and_evaluates_a_mask(peers_of, name):
    peers, graph = peers_of(name, values={"prior": 3.0})
    messages = [peer.local_update(0)[0] for peer in peers]
    weights = peers[0].net.first != 0
    before = torch.sigmoid(peers[0].x)[weights]
    peers[0].fine_tune({other: messages[other] for other in graph.neighbours(0)})
    kept = sum(torch.from_numpy(messages[other].values) for other in graph.neighbours(0))
    after = torch.sigmoid(peers[0].x)[weights]
    assert torch.allclose(after, (3 * before + kept) / 5, atol=1e-3)
    assert torch.equal(torch.from_numpy(peers[0].result()[0].mask), after > 0.5)


def test_jwins_averages_what_was_sent_and_what_was_left_out_grows_more_important(peers_of):
    peers, graph = peers_of("jwins", {"kind": "full", "peers": 3})
    messages = [peer.local_update(0)[0] for peer in peers]
    waves = [peer._waves(peer.x) for peer in peers]
    for number, peer in enumerate(peers):
        peer.fine_tune({other: messages[other] for other in graph.neighbours(number)})
        heard = [np.where(message.mask, theirs, waves[number]) for message, theirs in zip(messages, waves, strict=True)]
        expected = np.mean([*heard[:number], waves[number], *heard[number + 1 :]], axis=0)
        assert torch.allclose(peer.x, peer._parameters(expected), atol=1e-5)
    peer, shares = peers[0], set()
    importance = np.where(messages[0].mask, 0, waves[0] - peer._waves(peer.net.first)) + peer._waves(peer.x) - waves[0]
    for round_ in range(1, 13):
        before = peer._waves(peer.x)
        mask = peer.local_update(round_)[0].mask
        importance += peer._waves(peer.x) - before
        assert np.abs(importance)[mask].min() >= np.abs(importance)[~mask].max(initial=0) - 1e-5
        importance[mask] = 0
        shares.add(round(float(mask.mean()), 2))
    assert len(shares) > 3
    assert shares <= set(peer.SHARES)


def test_dispfl_keeps_its_densities_moves_its_mask_and_averages_kept_weights(peers_of):
    peers, graph = peers_of("dispfl", algorithm={"density": 0.5})
    first, ones = peers[0].mask, peers[0].ones
    assert not torch.equal(first, peers[1].mask)
    messages = [peer.local_update(0)[0] for peer in peers]
    assert not peers[0].x[~peers[0].mask].any()
    assert not torch.equal(peers[0].mask, first)
    assert peers[0].ones == ones
    assert all(k == pytest.approx(0.5, abs=0.01) for message in messages for k in message.density)
    models, masks = [peer.x for peer in peers], [peer.mask for peer in peers]
    peers[0].fine_tune({other: messages[other] for other in graph.neighbours(0)})
    keepers = torch.stack(masks).sum(0)
    expected = torch.where(masks[0], torch.stack(models).sum(0) / keepers.clamp(min=1), torch.zeros(()))
    assert torch.allclose(peers[0].x, expected, atol=1e-6)


def test_da_dpfl_is_dispfl_until_its_model_settles_and_then_cuts_the_smallest_weights(peers_of):
    (never, *_), _ = peers_of("da-dpfl", values={"settled": -1.0})
    (dispfl, *_), _ = peers_of("dispfl", values={"lr": never.lr})
    (settled, *_), _ = peers_of("da-dpfl", values={"settled": 100.0})
    for round_ in range(2):
        assert never.local_update(round_)[0].raw == dispfl.local_update(round_)[0].raw
        before = settled.mask.sum()
        message, _ = settled.local_update(round_)
    assert 0.1 < settled.mask.sum() / before < 0.95
    assert settled._cuts[:4] == (1, 1, 1, 1)
    assert np.array_equal(message.mask, settled.mask)
    assert np.array_equal(message.values, settled.x)
    assert settled.ones == message.layout.ones(message.mask)
    assert settled.mask[np.repeat([not weight for weight in message.layout.is_weight], message.layout.lengths)].all()


def test_da_dpfl_cuts_at_ever_shorter_distances_and_leaves_a_share(peers_of):
    (peer, *_), _ = peers_of("da-dpfl", rounds=12)
    first, kept = peer.mask.sum(), []
    peer._cuts = (2, 4, 5, 8)
    for round_ in range(10):
        if round_ == 7:
            peer._most = first * 100
        peer.local_update(round_)
        kept.append(int(peer.mask.sum()))
    assert [round_ for round_ in range(1, 10) if kept[round_] < kept[round_ - 1]] == [2, 4, 5]
    assert dadpfl._cuts(8, 5) == (8, 12, 14, 15, 15)
    assert dadpfl._worth(torch.ones(50)) == 50
    assert dadpfl._worth(torch.tensor([1.0] * 2 + [0.0] * 98)) == 10  # by the PQ index 2
    assert dadpfl._worth(torch.tensor([1.0, 4.0])) == 2


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns(peers_of, name):
    peers, graph = peers_of(name, rounds=12)
    first = [peer.evaluation() for peer in peers]
    start = np.mean([evaluate().personal for evaluate in first])
    for round_ in range(12):
        play(peers, graph, round_)
    assert np.mean([evaluate().personal for evaluate in first]) == start
    assert np.mean([peer.evaluation()().personal for peer in peers]) > max(0.75, start + 0.2)


@pytest.mark.parametrize("name", METHODS)
def test_a_state_is_all_that_is_needed_to_go_on(peers_of, name):
    peers, graph = peers_of(name)
    for round_ in range(2):
        play(peers, graph, round_)
    states = [peer.state() for peer in peers]
    expected = [[message.digest for message in play(peers, graph, round_)] for round_ in (2, 3)]
    again, _ = peers_of(name)
    for peer, state in zip(again, states, strict=True):
        peer.restore(state)
    assert [[message.digest for message in play(again, graph, round_)] for round_ in (2, 3)] == expected


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run_of(topology_file, tmp_path):
    """Run three peers of a method; the outcome."""

    def go(method, *, out="run", transport=TransportName.MEMORY, faults=None, surround=None, **experiment):
        run = config.load(topology_file(**{"rounds": 8, "deadline": "none", "checkpoint_every": 3, **experiment}))
        graph = topology.build(run.graph, run.experiment.seed)
        how = {"transport": transport, "faults": faults, "surround": surround, "restart": True}
        return run_local(run, graph, RunFolder(tmp_path / out), method=method, join_timeout=30, **how)

    return go


@pytest.mark.parametrize("name", ["choco", "dispfl"])
def test_a_network_that_loses_and_damages_messages_changes_nothing_where_all_are_waited_for(run_of, tmp_path, name):
    run_of(Compared(name), out="calm", rounds=5)
    faults = Faults(drop=0.05, duplicate=0.05, reorder=0.05, corrupt=0.05)
    disturbed = run_of(Compared(name), faults=faults, rounds=5)
    assert disturbed.failure is None
    assert sum(sum(peer.refused.values()) for peer in disturbed.summary.peers) > 0
    assert rounds_of(tmp_path / "run") == rounds_of(tmp_path / "calm")


class BrokenError(Exception):
    pass


def broken_once(job, around):
    """Let peer 1 fail in the middle of the run, the first time."""
    fuse = job.folder.path / "fuse"

    def look(event):
        if isinstance(event, RoundReport) and event.round == 5 and job.peer == 1 and not fuse.exists():
            fuse.touch()
            raise BrokenError

    return replace(around, sinks=(*around.sinks, Call(look)))


@pytest.mark.parametrize("name", METHODS)
def test_a_peer_that_fails_resumes_from_its_checkpoint(run_of, tmp_path, name):
    alone = {"algorithm": {"exchange": name != "sgd-alone"}}
    run_of(Compared(name), out="calm", **alone)
    outcome = run_of(Compared(name), surround=broken_once, **alone)
    assert outcome.failure is None
    happened = what_happened(outcome.summary)
    assert happened["died", 1] == happened["restarted", 1] == happened["resumed", 1] == 1
    assert rounds_of(tmp_path / "run") == rounds_of(tmp_path / "calm")


def test_processes_over_sockets_say_what_threads_say(run_of):
    memory = run_of(Compared("choco"), out="memory")
    sockets = run_of(Compared("choco"), transport=TransportName.ZEROMQ)
    assert digests(sockets.summary) == digests(memory.summary)
    sent = {run.summary.payload_bytes_sent for run in (memory, sockets)}
    changes = (64 * 256 + 256 * 128 + 128 * 10 + 256 + 128 + 10) // 100
    assert max(sent) < 2 * changes * 6 * 8  # never more than the changes, at most 16 bits each
    assert len(sent) == 1
    assert sockets.summary.message_bytes_sent < sockets.summary.link_bytes_sent


@pytest.mark.parametrize("mode", ["sync", "deadline", "async"])
@exchanging
def test_every_method_plays_in_every_mode(run_of, name, mode):
    outcome = run_of(Compared(name), mode=mode, deadline=20)
    assert outcome.failure is None
    assert [peer.rounds_completed for peer in outcome.summary.peers] == [8] * 3
    assert all(not peer.refused for peer in outcome.summary.peers) or mode == "async"


@pytest.mark.parametrize(
    "other", [mask_learner, Compared("dpsgd-fp16"), Compared("dpsgd", {"lr": 0.01})], ids=["mask", "other", "lr"]
)
def test_peers_of_another_method_or_learning_rate_are_of_another_run(run_of, other):
    outcome = run_of(lambda job: (other if job.peer == 1 else Compared("dpsgd"))(job))
    assert type(outcome.failure) is WrongRunError
    assert "method" in str(outcome.failure)
    assert outcome.summary is None
