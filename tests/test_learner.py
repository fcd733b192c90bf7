"""A peer's learning as a whole: what it computes with, and what it lets others see."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from dslth import config
from dslth.learner import Learner, threads


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


def test_noise_on_what_is_sent_is_not_the_seeds():
    one, other = learner(epsilon=1), learner(epsilon=1)
    assert one.local_update(0)[0] != other.local_update(0)[0]
    assert one.mask() == other.mask()
