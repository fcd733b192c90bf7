"""What is exported is what the peers of a run learn from and are evaluated on, as PFLlib reads it."""

import json

import numpy as np
import pytest
import torch

from dslth import config, topology
from dslth.bench import pfllib
from dslth.learner import Samples


def samples(folder, kind, peer):
    """Read as PFLlib does."""
    with open(folder / kind / f"{peer}.npz", "rb") as file:
        return np.load(file, allow_pickle=True)["data"].tolist()


@pytest.mark.parametrize("kind", ["iid", "classes"])
def test_the_split_of_a_run_is_read_back_as_its_peers_have_it(topology_file, tmp_path, kind):
    partition = {"kind": "classes", "classes_per_peer": 4} if kind == "classes" else {"kind": "iid"}
    run = config.load(topology_file(seed=3, data={"partition": partition}))
    graph = topology.build(run.graph, run.experiment.seed)
    folder = tmp_path / "digits"
    told = pfllib.export(run, graph, "small", folder)
    counted = json.loads((folder / "config.json").read_text())
    sizes = [0, 0]
    for peer in range(3):
        mine = Samples(peer, 3, run.experiment, run.device(peer))
        train, test = (samples(folder, part, peer) for part in ("train", "test"))
        assert (train["x"].dtype, train["x"].shape[1:], train["y"].dtype) == (np.float32, (1, 8, 8), np.int64)
        everything = {(x.tobytes(), int(y)) for x, y in zip(train["x"], train["y"], strict=True)}
        images, labels = mine.batch(0, 0)
        assert {(x.numpy().tobytes(), int(y)) for x, y in zip(images, labels, strict=True)} <= everything
        assert len(train["y"]) == len(mine)
        rights = torch.from_numpy(test["y"]) == 3
        seen = mine.accuracies(lambda images: torch.eye(10)[torch.full((len(images),), 3)])
        assert seen.personal == int(rights.sum()) / len(rights)
        both = np.concatenate([train["y"], test["y"]]).tolist()
        known = counted["Size of samples for labels in clients"][peer]
        assert known == [[label, both.count(label)] for label in sorted(set(both))]
        sizes = [sizes[0] + len(train["y"]), sizes[1] + len(test["y"])]
    assert tuple(sizes) == told
    assert (counted["num_clients"], counted["num_classes"], counted["non_iid"]) == (3, 10, kind != "iid")
    assert counted["partition"] == kind
    assert counted["dslth"]["topology"] == "small"
    assert counted["dslth"]["seed"] == 3


def test_the_command_writes_a_new_folder_only(commands, topology_file, tmp_path):
    line = ("dslth", "bench", "export", topology_file(), "--out", "split")
    done = commands.run(*line)
    assert done.returncode == 0, done.stderr
    assert "python main.py -data split -nc 3" in done.stdout
    assert sorted(path.name for path in (tmp_path / "split" / "test").iterdir()) == ["0.npz", "1.npz", "2.npz"]
    again = commands.run(*line)
    assert again.returncode == 12
    assert "not empty" in again.stderr
