"""Settings of the neighbours' mean against neighbours that lie, and randomised response, in whole runs."""

from functools import partial
from statistics import fmean

import numpy as np

from dslth import config, topology
from dslth.engines.supervisor import run_local
from dslth.learner import Learner
from dslth.masks import BitMask
from dslth.runs.folder import RunFolder

LIARS = {0, 4, 6}


class Liar(Learner):
    """Sends the mask that does the most harm: it keeps what its own mask drops, as many weights as it must."""

    def local_update(self, round_):
        mask, loss = super().local_update(round_)
        lies = []
        for bits, ones in zip(mask.arrays(), self.ones, strict=True):
            order = np.argsort(bits, kind="stable")
            lie = np.zeros(len(bits), bool)
            lie[order[:ones]] = True
            lies.append(lie)
        return BitMask.from_arrays(lies), loss


def lying(job, *, liars):
    make = Liar if job.peer in liars else Learner
    return make(job.peer, job.topology.peers, job.run.experiment, job.run.device(job.peer))


def honest_accuracy(folder, liars=LIARS, **algorithm):
    """The mean personal accuracy of the honest peers of a full graph of eight."""
    settings = {
        "graph": {"kind": "full", "peers": 8},
        "experiment": {"rounds": 8, "seed": 3, "algorithm": algorithm, "evaluate_every": 8},
    }
    run = config.load("ring", settings)
    graph = topology.build(run.graph, run.experiment.seed)
    outcome = run_local(run, graph, RunFolder(folder), transport="memory", method=partial(lying, liars=liars))
    return fmean(p.accuracy_personal for p in outcome.summary.peers if p.id not in liars)


def test_liars_do_less_harm_where_neighbours_are_weighed_by_how_alike_they_are(tmp_path):
    plain, similar = honest_accuracy(tmp_path / "plain"), honest_accuracy(tmp_path / "similar", mean="similar")
    assert similar > plain + 0.01
    assert honest_accuracy(tmp_path / "clean", mean="similar", liars=()) > 0.95  # and it costs nothing without liars


def test_randomised_response_still_learns(tmp_path):
    assert honest_accuracy(tmp_path / "noisy", liars=(), epsilon=4) > 0.85
    assert honest_accuracy(tmp_path / "more", liars=(), epsilon=1) > 0.65
