"""Who gets which samples: training sets, disjoint unless they are drawn, and test sets of each peer's own classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dslth import config
from dslth.errors import ConfigError, DataError
from dslth.learning.dataset import Dataset
from dslth.seeds import Stream

__all__ = ["VALIDATED", "Partition", "divide", "split"]

Indices = NDArray[np.int64]

VALIDATED = "accuracy is that on held-out training samples (data.validation); the test set is not looked at"


@dataclass(frozen=True)
class Partition:
    """Sample indices: ``train[i]`` and ``test[i]`` of peer i, ``common`` the test set that all peers share.

    With ``data.validation`` the latter two are training samples: all that the peer holds out, and some of any peer's.
    ``common`` is empty where each peer has data of its own. ``note`` says if training samples are held out, and if a
    counts table was scaled down to the data.
    """

    train: tuple[Indices, ...]
    test: tuple[Indices, ...]
    common: Indices
    note: str = ""

    @property
    def pairs(self) -> list[tuple[Indices, Indices]]:
        """The training and the own test samples of each peer."""
        return list(zip(self.train, self.test, strict=True))


def divide(experiment: config.ExperimentConfig, peers: int, dataset: Dataset) -> Partition:
    """Divide a data set among the peers of a run; raises what ``split`` does."""
    labels, clients = (dataset.train_labels, dataset.test_labels), (dataset.train_clients, dataset.test_clients)
    return split(experiment.data, peers, experiment.seed, *labels, dataset.classes, clients)


def split(
    data: config.DataConfig,
    peers: int,
    seed: int,
    train_labels: Indices,
    test_labels: Indices,
    classes: int,
    clients: tuple[Indices | None, Indices | None] = (None, None),
) -> Partition:
    """Divide the samples among the peers, in the same way for the same seed; ``clients`` of training and test samples.

    Data of a peer's own are those of one peer, number 0.

    Raises DataError if a peer would get no training, test or validation sample, ConfigError if a counts table or lists
    do not fit the number of peers or classes.
    """
    pools = _by_class(train_labels, classes, Stream(seed, "partition", "train"))
    own_test: tuple[Indices, ...] | None = None
    note = ""
    match data.partition:
        case config.DrawnPartition() as partition:
            train = _drawn(partition, peers, pools, seed)
        case config.ListsPartition() as partition:
            train = _listed(partition, peers, len(train_labels))
        case config.ClientsPartition():
            train, own_test = _by_client(peers, clients)
        case config.OwnPartition():
            peers, train, own_test = 1, (np.arange(len(train_labels)),), (np.arange(len(test_labels)),)
        case partition:
            train, note = _dealt(partition, peers, pools, seed)
    if data.validation:
        divided = [_held_out(mine, train_labels, data.validation, seed, peer) for peer, mine in enumerate(train)]
        train, test = (tuple(parts) for parts in zip(*divided, strict=True))
        everything, note = np.concatenate(test), "; ".join(filter(None, (note, VALIDATED)))
    elif own_test is not None:
        test = tuple(_some(mine, data.test_samples, seed, peer) for peer, mine in enumerate(own_test))
        everything = np.arange(len(test_labels))
    else:
        counts = [np.bincount(train_labels[mine], minlength=classes) for mine in train]
        test_pools = _by_class(test_labels, classes, Stream(seed, "partition", "test"))
        test = tuple(_alike(counts[i], test_pools, data.test_samples, i) for i in range(peers))
        everything = np.arange(len(test_labels))
    if data.each_its_own:
        everything = everything[:0]  # nobody has all data
    order = Stream(seed, "partition", "common").permutation(len(everything))
    return Partition(train, test, np.sort(everything[order[: data.test_samples]]), note)


def _drawn(partition: config.DrawnPartition, peers: int, pools: Sequence[Indices], seed: int) -> tuple[Indices, ...]:
    """Draw each peer's samples from all of its classes."""
    owns = _deal(peers, len(pools), partition.classes_per_peer, Stream(seed, "partition", "shares"))
    train = []
    for peer in range(peers):
        held = np.concatenate([pool for pool, own in zip(pools, owns[peer], strict=True) if own])
        if len(held) < partition.samples:
            raise DataError(
                f"experiment.data.partition.samples: peer {peer} would draw {partition.samples} samples out of "
                f"{len(held)}; use fewer samples, or more classes_per_peer"
            )
        chosen = Stream(seed, "partition", "drawn", peer).choice(len(held), partition.samples)
        train.append(np.sort(held[chosen]))
    return tuple(train)


def _listed(partition: config.ListsPartition, peers: int, samples: int) -> tuple[Indices, ...]:
    """Return the lists of sample numbers."""
    lists = [np.unique(np.array(line, np.int64)) for line in partition.table or ()]
    if len(lists) != peers:
        raise ConfigError(f"experiment.data.partition: {len(lists)} lists of samples for {peers} peers; give one each")
    for peer, mine in enumerate(lists):
        if not len(mine) or mine[-1] >= samples:
            what = f"lists sample {mine[-1]}; the last one is {samples - 1}" if len(mine) else "has no sample"
            raise ConfigError(f"experiment.data.partition: peer {peer} {what}")
    return tuple(lists)


def _by_client(
    peers: int, clients: tuple[Indices | None, Indices | None]
) -> tuple[tuple[Indices, ...], tuple[Indices, ...]]:
    """Return the training and test samples of each peer's clients."""
    known = [part for part in clients if part is not None]
    if len(known) < 2:
        raise DataError("experiment.data.partition: these data do not say whose a sample is; name a column with client")
    names = np.unique(np.concatenate(known))
    train, test = (
        [np.flatnonzero(np.searchsorted(names, part) % peers == peer) for peer in range(peers)] for part in known
    )
    for peer in range(peers):
        if not len(train[peer]) or not len(test[peer]):
            raise DataError(
                f"experiment.data.partition: peer {peer} would get {len(train[peer])} training and {len(test[peer])} "
                f"test samples of {len(names)} clients; use fewer peers, or leave out clients with so few samples"
            )
    return tuple(train), tuple(test)


def _some(mine: Indices, at_most: int, seed: int, peer: int) -> Indices:
    """Draw test samples of a peer."""
    return np.sort(mine[Stream(seed, "partition", "test", peer).permutation(len(mine))[:at_most]])


def _dealt(
    partition: config.DealtPartition, peers: int, pools: Sequence[Indices], seed: int
) -> tuple[tuple[Indices, ...], str]:
    """Deal the samples of each class; return them by peer, and a note for people."""
    available = np.array([int(len(pool) * (1 if partition.kind == "counts" else partition.fraction)) for pool in pools])
    counts, note = _counts(partition, peers, available, Stream(seed, "partition", "shares"))
    empty = np.flatnonzero(counts.sum(1) == 0)
    if len(empty):
        raise DataError(
            f"experiment.data.partition: peer {empty[0]} would get no training sample out of {available.sum()}; "
            "use fewer peers, more data, or a milder partition"
        )
    ends = counts.cumsum(0)
    columns = range(len(pools))
    train = tuple(
        np.sort(np.concatenate([pools[c][ends[i, c] - counts[i, c] : ends[i, c]] for c in columns]))
        for i in range(peers)
    )
    return train, note


def _held_out(mine: Indices, labels: Indices, share: float, seed: int, peer: int) -> tuple[Indices, Indices]:
    """Divide a peer's samples into those to learn from and those held out, a like share of each of its classes."""
    number = round(share * len(mine))
    if not 0 < number < len(mine):
        raise DataError(
            f"experiment.data.validation: peer {peer} has {len(mine)} training samples, of which a share of {share:g} "
            "cannot be held out; use more data, or another share"
        )
    classes = int(labels.max()) + 1
    pools = [mine[own] for own in _by_class(labels[mine], classes, Stream(seed, "partition", "validation", peer))]
    held = _alike(np.array([len(pool) for pool in pools]), pools, number, peer)
    return np.setdiff1d(mine, held), held


def _by_class(labels: Indices, classes: int, stream: Stream) -> list[Indices]:
    """Return the sample indices of each class, in an order drawn from the stream."""
    order = stream.permutation(len(labels))
    return [order[labels[order] == c] for c in range(classes)]


def _counts(partition: config.DealtPartition, peers: int, available: Indices, stream: Stream) -> tuple[Indices, str]:
    """Return the numbers of training samples, a row per peer, a column per class."""
    classes = len(available)
    match partition:
        case config.IidPartition():
            return _whole(np.full((peers, classes), 1 / peers), available), ""
        case config.ClassesPartition():
            owns = _deal(peers, classes, partition.classes_per_peer, stream)
            return _whole(owns / np.maximum(owns.sum(0), 1), available), ""
        case config.DirichletPartition():
            return _whole(
                np.stack([stream.dirichlet(partition.alpha, peers) for _ in range(classes)], 1), available
            ), ""
        case config.CountsPartition():
            return _scaled(partition, peers, available)


def _whole(shares: NDArray[np.float64], available: Indices) -> Indices:
    """Round shares of each class to whole samples so that none is given twice and none is lost."""
    ends = np.rint(shares.cumsum(0) * available).astype(np.int64)
    return np.diff(ends, axis=0, prepend=0)


def _deal(peers: int, classes: int, each: int, stream: Stream) -> NDArray[np.float64]:
    """Deal ``each`` classes to every peer, always those with the fewest owners so far, ties in random order."""
    if each > classes:
        raise ConfigError(f"experiment.data.partition.classes_per_peer: {each}, but there are {classes} classes")
    owns = np.zeros((peers, classes))
    for peer in stream.permutation(peers):
        order = stream.permutation(classes)
        owns[peer, order[np.argsort(owns.sum(0)[order], kind="stable")][:each]] = 1
    return owns


def _scaled(partition: config.CountsPartition, peers: int, available: Indices) -> tuple[Indices, str]:
    asked = np.array(partition.table, np.int64)
    if asked.shape != (peers, len(available)):
        raise ConfigError(
            f"experiment.data.partition: a table of {asked.shape[0]} rows and {asked.shape[1]} columns; "
            f"this run has {peers} peers and {len(available)} classes"
        )
    counts = np.floor(asked * partition.fraction + 1e-9).astype(np.int64)
    total = counts.sum(0)
    over = total > available
    if not over.any():
        return counts, ""
    worst = int(np.argmax(total / np.maximum(available, 1)))
    note = (
        f"the counts table asks for {total[worst]} samples of class {worst}, the data set has {available[worst]}: "
        "all counts were scaled down alike"
    )
    return counts * available[worst] // total[worst], note


def _alike(counts: Indices, pools: Sequence[Indices], at_most: int, peer: int) -> Indices:
    """Take test samples in the class proportions of ``counts``, as many as possible up to ``at_most``."""
    shares = counts / counts.sum()
    held = [int(c) for c in np.flatnonzero(counts)]
    total = int(min(at_most, *(len(pools[c]) / shares[c] for c in held)) + 1e-9)
    wanted = total * shares
    chosen = np.floor(wanted + 1e-9).astype(np.int64)
    for c in np.argsort(chosen - wanted, kind="stable")[: total - chosen.sum()]:  # largest remainders
        chosen[c] += len(pools[c]) > chosen[c]
    if not chosen.sum():
        raise DataError(f"experiment.data: no test sample for peer {peer}; raise test_samples or use more data")
    return np.sort(np.concatenate([pools[c][: chosen[c]] for c in held]))
