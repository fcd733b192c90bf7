"""Who gets which samples: properties of every kind of partition."""

import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dslth import config
from dslth.errors import ConfigError, DataError
from dslth.learning.partition import Partition, split

Labels = NDArray[np.int64]

PROPERTY = settings(max_examples=50, deadline=None, database=None)

IID = config.IidPartition(kind="iid")


def by_classes(n: int, fraction: float = 1.0) -> config.ClassesPartition:
    return config.ClassesPartition(kind="classes", classes_per_peer=n, fraction=fraction)


def by_table(table: list[list[int]], fraction: float = 1.0) -> config.CountsPartition:
    return config.CountsPartition.model_validate({"kind": "counts", "table": table, "fraction": fraction})


def data(partition: config.PartitionConfig, test_samples: int = 500) -> config.DataConfig:
    return config.DataConfig(partition=partition, test_samples=test_samples)


def shuffled(per_class: list[int], seed: int = 0) -> Labels:
    """Return labels in random order, ``per_class[c]`` of class c."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(per_class)), per_class))


TRAIN = shuffled([100] * 10, 1)
TEST = shuffled([40] * 10, 2)

label_sets = st.builds(shuffled, st.lists(st.integers(30, 60), min_size=2, max_size=10), st.integers(0, 2**32))
seeds = st.integers(0, 2**40)
alphas = st.sampled_from([0.1, 0.5, 1.0, 10.0, 1000.0])


def table_of(labels: Labels, partition: Partition, classes: int) -> NDArray[np.int64]:
    return np.array([np.bincount(labels[own], minlength=classes) for own in partition.train])


def same(one: Partition, other: Partition) -> bool:
    pairs = zip((*one.train, *one.test, one.common), (*other.train, *other.test, other.common), strict=True)
    return one.note == other.note and all(np.array_equal(a, b) for a, b in pairs)


@st.composite
def partitions(draw: st.DrawFn) -> tuple[config.PartitionConfig, int, Labels]:
    """Draw a partition without a table, the number of peers, and labels that suffice for it."""
    labels = draw(label_sets)
    classes = int(labels.max()) + 1
    kind = draw(st.sampled_from(["iid", "classes", "dirichlet"]))
    if kind == "iid":
        return IID, draw(st.integers(2, 15)), labels
    if kind == "dirichlet":
        return config.DirichletPartition(kind="dirichlet", alpha=draw(alphas)), draw(st.integers(2, 8)), labels
    each = draw(st.integers(1, classes))
    peers = draw(st.integers(-(-classes // each), 15).filter(lambda n: n >= 2))  # enough to own every class
    return by_classes(each), peers, labels


def split_or_skip(wanted: tuple[config.PartitionConfig, int, Labels], seed: int) -> Partition:
    """Split; Dirichlet shares may leave a peer without samples, which is an error of its own."""
    partition, peers, labels = wanted
    classes = int(labels.max()) + 1
    try:
        return split(data(partition), peers, seed, labels, shuffled([40] * classes), classes)
    except DataError:
        assume(partition.kind != "dirichlet")
        raise


# --- all kinds ------------------------------------------------------------------------------------------------------


@PROPERTY
@given(partitions(), seeds)
def test_each_training_sample_goes_to_exactly_one_peer(
    wanted: tuple[config.PartitionConfig, int, Labels], seed: int
) -> None:
    partition = split_or_skip(wanted, seed)
    handed_out = np.sort(np.concatenate(partition.train))
    np.testing.assert_array_equal(handed_out, np.arange(len(wanted[2])))
    assert len(partition.train) == len(partition.test) == wanted[1]
    assert all(len(own) and np.all(np.diff(own) > 0) for own in (*partition.train, *partition.test))


@PROPERTY
@given(partitions(), seeds)
def test_same_seed_same_split(wanted: tuple[config.PartitionConfig, int, Labels], seed: int) -> None:
    assert same(split_or_skip(wanted, seed), split_or_skip(wanted, seed))


@PROPERTY
@given(partitions(), seeds, seeds)
def test_other_seed_other_split(wanted: tuple[config.PartitionConfig, int, Labels], one: int, other: int) -> None:
    assume(one != other)
    a, b = split_or_skip(wanted, one), split_or_skip(wanted, other)
    counts = table_of(wanted[2], a, int(wanted[2].max()) + 1)
    assume(np.any((counts >= 5).sum(0) > 1))  # peers that own whole classes may well own the same ones again
    assert any(not np.array_equal(x, y) for x, y in zip(a.train, b.train, strict=True))


@pytest.mark.parametrize(
    "partition",
    [
        config.IidPartition(kind="iid", fraction=0.25),
        by_classes(4, 0.25),
        config.DirichletPartition(kind="dirichlet", alpha=5, fraction=0.25),
    ],
    ids=lambda partition: partition.kind,
)
def test_a_fraction_uses_that_share_of_each_class(partition: config.PartitionConfig) -> None:
    found = split(data(partition), 10, 1, TRAIN, TEST, 10)
    assert table_of(TRAIN, found, 10).sum(0).tolist() == [25] * 10
    assert len(np.unique(np.concatenate(found.train))) == 250


@PROPERTY
@given(partitions(), seeds, st.integers(20, 500))
def test_personal_test_sets_are_of_the_peers_own_proportions(
    wanted: tuple[config.PartitionConfig, int, Labels], seed: int, at_most: int
) -> None:
    partition, peers, labels = wanted
    classes = int(labels.max()) + 1
    test_labels = shuffled([int(n) for n in np.random.default_rng(seed).integers(20, 60, classes)], seed)
    try:
        found = split(data(partition, at_most), peers, seed, labels, test_labels, classes)
    except DataError:
        assume(partition.kind != "dirichlet")
        raise
    pools = np.bincount(test_labels, minlength=classes)
    for counts, own in zip(table_of(labels, found, classes), found.test, strict=True):
        tested = np.bincount(test_labels[own], minlength=classes)
        assert set(np.flatnonzero(tested)) <= set(np.flatnonzero(counts))
        shares = counts / counts.sum()
        total = min(at_most, *(pools[c] / shares[c] for c in np.flatnonzero(counts)))
        assert np.abs(tested - total * shares).max() < 1 + shares.max()  # as many as there are, in whole samples


@PROPERTY
@given(partitions(), seeds, st.integers(1, 20))
def test_personal_test_sets_have_the_number_asked_for(
    wanted: tuple[config.PartitionConfig, int, Labels], seed: int, at_most: int
) -> None:
    partition, peers, labels = wanted
    classes = int(labels.max()) + 1
    try:
        found = split(data(partition, at_most), peers, seed, labels, shuffled([40] * classes), classes)
    except DataError:
        assume(partition.kind != "dirichlet")
        raise
    assert {len(own) for own in found.test} == {at_most}


def test_the_common_test_set_is_drawn_from_all_classes() -> None:
    found = split(data(by_classes(2), 100), 10, 1, TRAIN, TEST, 10)
    assert len(found.common) == len(np.unique(found.common)) == 100
    assert set(TEST[found.common]) == set(range(10))
    assert np.all(np.diff(found.common) > 0)
    everything = split(data(by_classes(2), 5000), 10, 1, TRAIN, TEST, 10)
    np.testing.assert_array_equal(everything.common, np.arange(len(TEST)))


def test_who_gets_what_does_not_depend_on_the_number_of_test_samples() -> None:
    few, many = (split(data(by_classes(4), n), 10, 1, TRAIN, TEST, 10) for n in (40, 300))
    assert all(np.array_equal(a, b) for a, b in zip(few.train, many.train, strict=True))
    assert all(set(a) <= set(b) for a, b in zip(few.test, many.test, strict=True))


@pytest.mark.parametrize("test_samples", [6, 15, 500])
def test_test_samples_is_an_upper_limit(test_samples: int) -> None:
    classes = 3 if test_samples == 500 else 10  # 3 x 166.67 is 501 when rounded
    labels = shuffled([1000] * classes)
    found = split(data(IID, test_samples), 2, 1, labels, labels, classes)
    assert max(map(len, found.test)) <= test_samples


@pytest.mark.parametrize("test_samples", [1, 5])
def test_a_few_test_samples_are_better_than_an_error(test_samples: int) -> None:
    found = split(data(IID, test_samples), 2, 1, TRAIN, TEST, 10)
    assert [len(own) for own in found.test] == [test_samples] * 2


# --- validation -----------------------------------------------------------------------------------------------------


def validated(partition: config.PartitionConfig, share: float, test_samples: int = 500) -> config.DataConfig:
    return config.DataConfig(partition=partition, test_samples=test_samples, validation=share)


@PROPERTY
@given(partitions(), seeds, st.sampled_from([0.1, 0.25, 0.5]))
def test_validation_divides_each_peers_own_samples(
    wanted: tuple[config.PartitionConfig, int, Labels], seed: int, share: float
) -> None:
    partition, peers, labels = wanted
    classes = int(labels.max()) + 1
    whole = split_or_skip(wanted, seed)
    assume(all(0 < round(share * len(mine)) < len(mine) for mine in whole.train))
    found, again = (split(validated(partition, share), peers, seed, labels, TEST, classes) for _ in range(2))
    assert same(found, again)
    assert "test set is not looked at" in found.note
    for mine, train, held in zip(whole.train, found.train, found.test, strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), mine)  # disjoint, nothing lost
        assert len(held) == round(share * len(mine))
        counts, own = (np.bincount(labels[part], minlength=classes) for part in (held, mine))
        assert np.abs(counts - own * len(held) / len(mine)).max() < 1
    assert set(found.common) <= set(np.concatenate(found.test))
    assert len(found.common) == min(500, sum(map(len, found.test)))


def test_what_is_held_out_depends_on_the_seed_and_no_test_label_is_read() -> None:
    one, other = (split(validated(by_table([[50] * 10]), 0.1), 1, seed, TRAIN, TEST, 10) for seed in (1, 2))
    in_class = [TRAIN[found.test[0]].tolist() for found in (one, other)]
    assert sorted(in_class[0]) == sorted(in_class[1])
    assert not np.array_equal(one.test[0], other.test[0])
    unseen = split(validated(by_table([[50] * 10]), 0.1), 1, 1, TRAIN, np.zeros(0, np.int64), 10)
    assert same(one, unseen)


def test_a_peer_with_too_few_samples_to_hold_one_out_is_named() -> None:
    with pytest.raises(DataError, match=r"validation: peer 1 has 4 training samples, of which a share of 0\.1 cannot"):
        split(validated(by_table([[9] * 10, [4] + [0] * 9]), 0.1), 2, 1, TRAIN, TEST, 10)
    with pytest.raises(DataError, match="validation: peer 0 has 1 training"):
        split(validated(by_table([[1] + [0] * 9]), 0.9), 1, 1, TRAIN, TEST, 10)


# --- iid, classes, dirichlet ----------------------------------------------------------------------------------------


@PROPERTY
@given(label_sets, st.integers(2, 15), seeds)
def test_iid_gives_everybody_alike_of_each_class(labels: Labels, peers: int, seed: int) -> None:
    classes = int(labels.max()) + 1
    found = split(data(IID), peers, seed, labels, shuffled([40] * classes), classes)
    counts = table_of(labels, found, classes)
    assert np.all(counts.max(0) - counts.min(0) <= 1)


@PROPERTY
@given(st.integers(1, 10), st.integers(1, 20), seeds)
def test_classes_gives_each_peer_its_number_and_each_class_alike_owners(each: int, peers: int, seed: int) -> None:
    counts = table_of(TRAIN, split(data(by_classes(each)), peers, seed, TRAIN, TEST, 10), 10)
    assert np.all((counts > 0).sum(1) == each)
    owners = (counts > 0).sum(0)
    assert owners.max() - owners.min() <= 1
    if peers * each % 10 == 0:
        assert owners.max() == owners.min()
    for own in counts.T[owners > 0]:  # owners share a class evenly
        assert own.sum() == 100
        assert own[own > 0].max() - own[own > 0].min() <= 1


def test_classes_are_not_always_dealt_to_the_same_peers() -> None:
    owned = {
        tuple(map(tuple, table_of(TRAIN, split(data(by_classes(4)), 10, seed, TRAIN, TEST, 10), 10) > 0))
        for seed in range(5)
    }
    assert len(owned) == 5


def test_a_smaller_alpha_makes_peers_less_alike() -> None:
    def spread(alpha: float) -> float:
        partition = config.DirichletPartition(kind="dirichlet", alpha=alpha)
        return float(table_of(TRAIN, split(data(partition), 5, 3, TRAIN, TEST, 10), 10).std(0).mean())

    assert spread(0.3) > 2 * spread(5) > 4 * spread(500)


# --- counts ---------------------------------------------------------------------------------------------------------

tables = st.integers(1, 6).flatmap(
    lambda columns: st.lists(
        st.lists(st.integers(0, 20), min_size=columns, max_size=columns).filter(any), min_size=1, max_size=5
    )
)


@PROPERTY
@given(tables, seeds)
def test_a_counts_table_is_followed_exactly(table: list[list[int]], seed: int) -> None:
    classes = len(table[0])
    labels = shuffled([100] * classes, 5)
    found = split(data(by_table(table)), len(table), seed, labels, shuffled([40] * classes), classes)
    assert table_of(labels, found, classes).tolist() == table
    assert len(np.unique(np.concatenate(found.train))) == sum(map(sum, table))
    assert found.note == ""


def test_a_fraction_of_a_table_is_truncated_count_by_count() -> None:
    table = [[555, 0, 625, 454], [1666, 714, 4, 5]]
    labels = shuffled([500] * 4)
    found = split(data(by_table(table, 0.2)), 2, 1, labels, labels, 4)
    assert table_of(labels, found, 4).tolist() == [[int(n / 5) for n in row] for row in table]
    assert found.note == ""


def test_a_table_that_asks_for_too_much_is_scaled_down_as_a_whole() -> None:
    found = split(data(by_table([[150, 10, 7], [50, 0, 1]])), 2, 1, shuffled([100] * 3), shuffled([40] * 3), 3)
    assert table_of(shuffled([100] * 3), found, 3).tolist() == [[75, 5, 3], [25, 0, 0]]
    assert "200 samples of class 0" in found.note
    assert "has 100" in found.note
    assert "scaled down" in found.note


@PROPERTY
@given(tables, st.integers(3, 40), seeds)
def test_a_scaled_table_keeps_its_proportions_and_fits(table: list[list[int]], have: int, seed: int) -> None:
    asked = np.array(table)
    classes = len(table[0])
    labels = shuffled([have] * classes, 5)
    ratio = min(1.0, have / asked.sum(0).max())
    assume(np.all((asked * ratio).max(1) >= 1.01))  # nobody comes out empty
    found = split(data(by_table(table)), len(table), seed, labels, shuffled([40] * classes), classes)
    counts = table_of(labels, found, classes)
    assert np.all(counts <= asked * ratio + 1e-9)
    assert np.all(counts > asked * ratio - 1)
    assert np.all(counts.sum(0) <= have)
    assert bool(found.note) == (ratio < 1)


def test_a_peer_is_tested_in_the_proportions_of_its_row() -> None:
    found = split(data(by_table([[30, 10, 0], [0, 0, 5]]), 40), 2, 1, shuffled([100] * 3), shuffled([40] * 3), 3)
    tested = [np.bincount(shuffled([40] * 3)[own], minlength=3).tolist() for own in found.test]
    assert tested == [[30, 10, 0], [0, 0, 40]]


# --- errors ---------------------------------------------------------------------------------------------------------


def test_more_peers_than_samples_is_a_data_error() -> None:
    labels = np.array([0, 1, 0])
    with pytest.raises(DataError, match=r"peer \d+ would get no training sample out of 3"):
        split(data(IID), 9, 1, labels, TEST, 2)


def test_an_empty_row_names_its_peer() -> None:
    with pytest.raises(DataError, match="peer 1 would get no training sample"):
        split(data(by_table([[1] * 10, [0] * 10])), 2, 1, TRAIN, TEST, 10)


def test_a_table_scaled_down_to_nothing_names_its_peer() -> None:
    with pytest.raises(DataError, match="peer 1 would get no training sample"):
        split(data(by_table([[1000, 0], [1, 0]])), 2, 1, shuffled([10, 10]), shuffled([10, 10]), 2)


def test_a_class_without_test_samples_names_the_peer() -> None:
    with pytest.raises(DataError, match="no test sample for peer 0"):
        split(data(by_table([[5, 0]])), 1, 1, shuffled([10, 10]), np.ones(10, np.int64), 2)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ([[1] * 10], "a table of 1 rows and 10 columns; this run has 2 peers and 10 classes"),
        ([[1] * 10] * 3, "a table of 3 rows and 10 columns; this run has 2 peers and 10 classes"),
        ([[1] * 9] * 2, "a table of 2 rows and 9 columns; this run has 2 peers and 10 classes"),
        ([[1] * 2] * 10, "a table of 10 rows and 2 columns; this run has 2 peers and 10 classes"),
    ],
)
def test_a_table_of_another_shape_is_refused(table: list[list[int]], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        split(data(by_table(table)), 2, 1, TRAIN, TEST, 10)


def test_more_classes_per_peer_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="classes_per_peer: 11, but there are 10 classes"):
        split(data(by_classes(11)), 2, 1, TRAIN, TEST, 10)


# --- drawn ------------------------------------------------------------------------------------------------------------


def drawn(samples: int, classes: int = 3) -> config.DataConfig:
    return data(config.DrawnPartition(kind="drawn", classes_per_peer=classes, samples=samples))


@PROPERTY
@given(st.integers(1, 300), st.integers(1, 10), st.integers(2, 60), seeds)
def test_each_peer_draws_as_many_samples_of_its_classes_whatever_their_number(samples, classes, peers, seed):
    assume(samples <= 100 * classes)
    found = split(drawn(samples, classes), peers, seed, TRAIN, TEST, 10)
    for mine, tested in zip(found.train, found.test, strict=True):
        assert len(set(mine.tolist())) == samples
        held = set(TRAIN[mine].tolist())
        assert len(held) <= classes
        assert set(TEST[tested].tolist()) <= held
    assert same(found, split(drawn(samples, classes), peers, seed, TRAIN, TEST, 10))
    assert not same(found, split(drawn(samples, classes), peers, seed + 1, TRAIN, TEST, 10))


def test_more_peers_than_samples_draw_unlike_ones_and_together_nearly_all():
    found = split(drawn(20), 1_500, 1, TRAIN, TEST, 10)
    assert len({tuple(mine) for mine in found.train}) > 1_400
    assert len(set(np.concatenate(found.train).tolist())) == len(TRAIN)


def test_more_samples_than_a_peers_classes_have_are_refused():
    with pytest.raises(DataError, match=r"partition\.samples: peer 0 would draw 301 samples out of 300"):
        split(drawn(301), 4, 1, TRAIN, TEST, 10)
