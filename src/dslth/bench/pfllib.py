"""A run's samples in the layout of PFLlib's data sets, so that its many methods can be run on exactly these.

``train/ID.npz`` and ``test/ID.npz`` have one array, ``data``: a pickled dictionary of ``x``, float32 (n, channels,
height, width) in [-1, 1], and ``y``, int64 (n,). PFLlib loads it with ``allow_pickle``; dslth only ever writes it.
``config.json`` is what PFLlib's generators write, and under ``dslth`` what the split was made from.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dslth import files
from dslth.config import RunConfig
from dslth.errors import OutputError
from dslth.learner import Division
from dslth.topology import Topology

__all__ = ["export"]


def export(settings: RunConfig, graph: Topology, name: str, folder: Path) -> tuple[int, int]:
    """Write the run's split; return the number of training and of test samples of all peers.

    Test samples are those of each peer's own classes, which its personal accuracy counts. Raises DataError,
    OutputError.
    """
    experiment = settings.experiment
    division = Division(graph.peers, experiment)
    dataset, shares = division.dataset, division.shares
    parts = (
        ("train", dataset.train_images, dataset.train_labels, shares.train),
        ("test", dataset.test_images, dataset.test_labels, shares.test),
    )
    labels = [
        np.concatenate([all_labels[chosen[peer]] for _, _, all_labels, chosen in parts]) for peer in range(graph.peers)
    ]
    partition = experiment.data.partition
    config = {
        "num_clients": graph.peers,
        "num_classes": dataset.classes,
        "non_iid": partition.kind != "iid",
        "balance": False,
        "partition": partition.kind,
        "Size of samples for labels in clients": [_counts(of_peer) for of_peer in labels],
        "alpha": getattr(partition, "alpha", None),
        "batch_size": experiment.algorithm.batch,
        "dslth": {"topology": name, "seed": experiment.seed, "data": experiment.data.model_dump(exclude={"folder"})},
    }
    try:
        for kind, images, all_labels, chosen in parts:
            for peer, mine in enumerate(chosen):
                files.replace(folder / kind / f"{peer}.npz", _packed(images[mine], all_labels[mine]))
        files.replace(folder / "config.json", json.dumps(config).encode())
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}") from None
    return sum(map(len, shares.train)), sum(map(len, shares.test))


def _counts(labels: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return each label that is there, and how often."""
    return [(int(label), int(count)) for label, count in zip(*np.unique(labels, return_counts=True), strict=True)]


def _packed(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    """Return a file with the samples as the learner sees them."""
    samples = {"x": images.astype(np.float32) / np.float32(127.5) - np.float32(1), "y": labels}
    savez: Callable[..., None] = np.savez_compressed  # whose types know arrays only
    file = io.BytesIO()
    savez(file, data=samples)
    return file.getvalue()
