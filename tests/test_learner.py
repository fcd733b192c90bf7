"""A peer's learning as a whole: what it computes with, and what it lets others see."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dslth import config
from dslth.learner import Learner, Samples, threads
from dslth.learning import data, partition
from dslth.runs.events import Accuracies


def learner(**algorithm):
    run = config.load("ring", {"experiment": {"algorithm": algorithm, "model": {"name": "mlp"}}})
    return Learner(0, 10, run.experiment, run.device(0))


def test_two_peers_of_one_process_compute_with_as_many_threads_as_each_asked_for():
    both = threading.Barrier(2)

    def within(count):
        with threads(count):
            both.wait()  # now both have set theirs
            torch.randn(300, 300) @ torch.randn(300, 300)
            found = torch.get_num_threads()
            both.wait()
        return found

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(within, (1, 2))) == [1, 2]


def test_learning_leaves_the_callers_number_of_threads_alone():
    before = torch.get_num_threads()
    with threads(3):
        learner().local_update(0)
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before


def test_a_device_that_torch_does_not_find_is_one_clear_line(commands, topology_file):
    done = commands.run("dslth", "run", "-t", topology_file(), "--device", "cuda:999", "--restart", "never")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert re.search(r"device cuda:999: torch finds (no|\d+) CUDA devices here; choose another", done.stderr)
    done = commands.run("dslth", "run", "-t", topology_file(), "--device", "gpu")
    assert (done.returncode, done.stderr.strip()) == (3, "dslth: --device 'gpu': expected cpu, cuda or cuda:N")


def test_an_option_moves_all_peers_to_a_device_and_leaves_their_other_settings():
    run = config.load("devices")
    moved = run.on("cuda:1", 12)
    assert {moved.device(peer).device for peer in range(12)} == {"cuda:1"}
    assert moved.on("cpu", 12).peers.items() >= run.peers.items()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_peers_on_one_gpu_and_on_the_processor_learn_together():
    settings = config.load("ring", {"peers": {0: {"device": "cuda"}, 1: {"device": "cuda:0"}}})
    peers = [Learner(peer, 10, settings.experiment, settings.device(peer)) for peer in range(3)]
    for round_ in range(10):
        masks = [peer.local_update(round_)[0] for peer in peers]
        for number, peer in enumerate(peers):
            peer.fine_tune({other: mask for other, mask in enumerate(masks) if other != number})
    assert min(peer.evaluation()().personal for peer in peers) > 0.7


def test_looking_at_the_mask_in_between_changes_nothing():
    one, other, neighbour = learner(), learner(), learner(lr=2.0)
    for round_ in range(3):
        received = {1: neighbour.local_update(round_)[0]}
        assert one.local_update(round_)[0] == other.local_update(round_)[0]
        sent = one.mask()  # between a round's steps and its fine-tuning
        for peer in (one, other):
            peer.fine_tune(received)
        assert sent != one.mask() == other.mask()


@pytest.mark.parametrize(
    "variant", [{}, {"heavy_ball": 0.9}, {"heavy_ball": 0.9, "relative": True, "schedule": "linear", "lift": 4.0}]
)
def test_a_peer_that_takes_up_a_state_goes_on_bit_for_bit(variant):
    one, other, neighbour = (learner(lr=lr, **variant) for lr in (0.1, 0.1, 0.2))
    sent = [neighbour.local_update(round_)[0] for round_ in range(6)]

    def play(peer, rounds):
        played = []
        for round_ in rounds:
            played.append(peer.local_update(round_)[0])
            peer.fine_tune({1: sent[round_]})
        return played

    play(one, range(3))
    state = one.state()
    first = play(one, range(3, 6))
    other.restore(state)
    assert play(other, range(3, 6)) == first
    one.restore(state)  # which later rounds have left as it was
    assert play(one, range(3, 6)) == first


@pytest.mark.parametrize(("schedule", "moves"), [("constant", True), ("linear", False), ("cosine", False)])
def test_rates_have_fallen_when_the_rounds_are_over(schedule, moves):
    peer, neighbour = learner(schedule=schedule), learner(lr=2.0)
    rounds = peer._experiment.rounds
    before, received = peer.mask(), {1: neighbour.local_update(0)[0]}
    sent, _ = peer.local_update(rounds)
    assert (sent != before) == moves
    peer.fine_tune(received)
    with_received = peer.mask()
    peer.fine_tune(received)  # again along the same gradient
    assert (peer.mask() != with_received) == moves
    assert learner(schedule=schedule).local_update(0)[0] == learner().local_update(0)[0]


@pytest.mark.parametrize("lift", [0.0, 1.0, 4.0])
def test_neighbours_know_nearly_what_a_mask_is_before_anything_is_learned(lift):
    peer, other = learner(lift=lift), learner(lift=0.5)
    told = peer.forecast(0, peer.ones).mask
    assert max(peer.mask().flips(told)) < 0.005  # a mean of magnitudes is not quite what it is expected to be
    assert min(other.mask().flips(told)) > 0.02


def test_noise_on_what_is_sent_is_not_the_seeds():
    one, other = learner(epsilon=1), learner(epsilon=1)
    assert one.local_update(0)[0] != other.local_update(0)[0]
    assert one.mask() == other.mask()


def test_what_is_evaluated_is_the_mask_that_was_in_use_then():
    peer = learner()
    first = peer.evaluation()
    before = first()
    for round_ in range(10):
        peer.fine_tune({1: peer.local_update(round_)[0]})
    assert first() == before
    assert peer.evaluation()().personal > before.personal + 0.2


@pytest.mark.parametrize(
    ("settings", "rounds"),
    [
        ({"evaluate_every": 3}, 3),
        ({}, 8),  # 360 test images, 256 learned from in a round
        ({"data": {"test_samples": 100}}, 4),
        ({"algorithm": {"local_steps": 20}}, 1),
        ({"preset": "mce-pl"}, 15),
    ],
)
def test_evaluation_takes_place_as_often_as_the_file_says_or_a_tenth_of_the_compute(topology_file, settings, rounds):
    file = topology_file(graph={"kind": "ring", "peers": 10})
    run = config.load(file, {"experiment": settings})
    assert {Samples(peer, 10, run.experiment, run.device(peer)).evaluate_every for peer in (0, 7)} == {rounds}
    run = config.load(file, {"experiment": settings, "peers": {7: {"batch": 8, "speed": 0.1}}})
    assert Samples(7, 10, run.experiment, run.device(7)).evaluate_every == rounds  # all on the same rounds


@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_accuracies_are_those_of_each_test_set_by_itself(validation):
    run = config.load("ring", {"experiment": {"data": {"validation": validation}}})
    samples = Samples(3, 10, run.experiment, run.device(3))
    dataset = data.load(run.experiment.data)
    shares = partition.split(
        run.experiment.data, 10, run.experiment.seed, dataset.train_labels, dataset.test_labels, 10
    )

    images, labels = (
        (dataset.train_images, dataset.train_labels) if validation else (dataset.test_images, dataset.test_labels)
    )
    assert len(samples) == len(shares.train[3])

    def by_brightness(images):
        return torch.nn.functional.one_hot(images.mean((1, 2, 3)).mul(40).long().abs() % 10, 10)

    expected = []
    for test in (shares.test[3], shares.common):
        guessed = by_brightness(torch.from_numpy(images[test]).float() / 127.5 - 1).argmax(1).numpy()
        expected.append(float((guessed == labels[test]).mean()))
    assert samples.accuracies(by_brightness) == Accuracies(*expected)
    assert len({0.0, *expected}) == 3
