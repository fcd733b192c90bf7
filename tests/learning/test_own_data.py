"""Own data: files and folders as people have them, read as one kind of data set; and who gets what of them."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from dslth import config, topology
from dslth.config import DataConfig
from dslth.engines.base import preflight
from dslth.errors import ConfigError, DataError
from dslth.learning import data, partition
from dslth.learning.own_data import read

DRAWS = np.random.default_rng(3)
X = DRAWS.normal(5, 3, (50, 4)).astype(np.float32).round(3)
Y = np.arange(50) % 3
WHO = np.arange(50) % 7


def fifth(*keys: object) -> np.ndarray:
    """Every fifth sample in the order of the keys, the first one first."""
    order = sorted(range(len(keys[0])), key=lambda n: [*(str(key[n]).rjust(9) for key in keys), n])
    return np.isin(np.arange(len(order)), order[4::5])


TEST = fifth(Y)


def own(path: Path, **keys: object) -> DataConfig:
    return DataConfig.model_validate({"path": str(path), **keys})


def table(path: Path, x: np.ndarray = X, y: object = Y, **columns: object) -> Path:
    frame = pd.DataFrame(x, columns=[f"f{number}" for number in range(x.shape[1])]).assign(**columns, label=y)
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    return path


def arrays(path: Path, **held: object) -> Path:
    np.savez(path, **({"x": X, "y": Y} | held))
    return path


# --- what is read ---------------------------------------------------------------------------------------------------


def test_the_same_samples_are_the_same_data_in_any_file(tmp_path: Path) -> None:
    files = [table(tmp_path / "a.csv"), table(tmp_path / "a.parquet"), arrays(tmp_path / "a.npz")]
    found = [read(own(file)) for file in files]
    assert len({dataset.digest for dataset in found}) == 1
    assert (found[0].train_labels == Y[~TEST]).all()
    assert (found[0].test_labels == Y[TEST]).all()
    back = found[0].test_images * np.array(found[0].deviation) + np.array(found[0].mean)
    assert np.allclose(back, X[TEST], atol=1e-4)
    assert (found[0].inputs.shape, found[0].classes, found[0].names) == ((4,), 3, ())


def test_features_are_standardised_by_the_training_samples_alone(tmp_path: Path) -> None:
    x = X.copy()
    x[:, 1] = 7  # a constant one
    found = read(own(arrays(tmp_path / "a.npz", x=x, x_test=x[:5] + 1000, y_test=Y[:5])))
    assert np.allclose(found.train_images.mean(0), 0, atol=1e-4)
    assert np.allclose(found.train_images[:, [0, 2, 3]].std(0), 1, atol=1e-4)
    assert (found.train_images[:, 1] == 0).all()
    assert (found.test_images > 100).all()


def test_the_digest_is_that_of_all_that_is_read(tmp_path: Path) -> None:
    one = read(own(arrays(tmp_path / "a.npz")))
    others = [{"x": X + np.eye(50, 4, dtype=np.float32)}, {"y": (Y + 1) % 3}, {"x_test": X[:9], "y_test": Y[:9]}]
    digests = {read(own(arrays(tmp_path / "b.npz", **other))).digest for other in others}
    assert len(digests | {one.digest}) == 4
    assert read(own(arrays(tmp_path / "c.npz"))).digest == one.digest


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=10, max_size=40))
def test_any_words_are_classes(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    if len(set(words)) < 2:
        words[0] += "x"
    folder = tmp_path_factory.mktemp("own")
    labels = np.array(words)
    found = read(own(arrays(folder / "a.npz", x=np.arange(2.0 * len(words)).reshape(-1, 2), y=labels)))
    assert found.names == tuple(sorted(set(labels.tolist())))
    for samples, numbers in ((found.train_images, found.train_labels), (found.test_images, found.test_labels)):
        rows = np.rint((samples[:, 0] * found.deviation[0] + found.mean[0]) / 2).astype(int)
        assert [found.names[number] for number in numbers] == labels[rows].tolist()


@pytest.mark.parametrize("period", [2, 5, 10])
def test_every_class_and_client_is_tested_alike_however_a_file_is_sorted(period: int, tmp_path: Path) -> None:
    y, who = np.arange(200) % period, np.arange(200) % 5
    found = read(own(arrays(tmp_path / "a.npz", x=np.ones((200, 2)), y=y, client=who)))
    assert found.test_clients is not None
    assert np.bincount(found.test_clients).tolist() == [8] * 5
    assert np.bincount(found.test_labels, minlength=period).min() >= 200 / period / 5 - 5


def test_classes_that_a_peer_does_not_see_are_known_by_number_or_name(tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz", y=np.where(Y, 7, 2))
    assert read(own(path)).names == ("2", "7")
    found = read(own(path, classes=10))
    assert (found.classes, set(found.train_labels.tolist())) == (10, {2, 7})
    words = arrays(tmp_path / "b.npz", y=np.where(Y, "dog", "cat"))
    assert set(read(own(words, classes=("bird", "cat", "dog"))).train_labels.tolist()) == {1, 2}


def test_bytes_stay_bytes_and_tokens_whole_numbers(tmp_path: Path) -> None:
    images = DRAWS.integers(0, 256, (50, 1, 4, 4)).astype(np.uint8)
    found = read(own(arrays(tmp_path / "a.npz", x=images)))
    assert (found.inputs.number, found.inputs.shape, found.mean) == ("uint8", (1, 4, 4), ())
    assert (found.test_images == images[TEST]).all()
    flat = read(own(arrays(tmp_path / "b.npz", x=images.reshape(50, 16)), shape=(1, 4, 4)))
    assert flat.digest == found.digest
    words = DRAWS.integers(0, 1000, (50, 12))
    tokens = read(own(arrays(tmp_path / "c.npz", x=words), tokens=True))
    assert (tokens.inputs.number, tokens.test_images.tolist()) == ("int64", words[TEST].tolist())


def test_a_column_of_lists_is_a_sequence(tmp_path: Path) -> None:
    words = DRAWS.integers(0, 9, (20, 6))
    pd.DataFrame({"tokens": list(words), "label": ["yes", "no"] * 10}).to_parquet(tmp_path / "a.parquet")
    found = read(own(tmp_path / "a.parquet", tokens=True))
    assert (found.test_images == words[fifth(["yes", "no"] * 10)]).all()
    assert found.names == ("no", "yes")


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 5), value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)


def test_a_folder_of_images_has_a_class_for_each_folder_in_it(tmp_path: Path) -> None:
    for number in range(10):
        picture(tmp_path / "all" / ("cat" if number % 2 else "dog") / f"{number}.png", value=number)
    found = read(own(tmp_path / "all"))
    assert (found.inputs.shape, found.inputs.number, found.names) == ((3, 5, 6), "uint8", ("cat", "dog"))
    cats = [*found.train_images[found.train_labels == 0], *found.test_images[found.test_labels == 0]]
    assert sorted(int(image[0, 0, 0]) for image in cats) == [1, 3, 5, 7, 9]
    assert read(own(tmp_path / "all", shape=(1, 8, 8))).inputs.shape == (1, 8, 8)
    picture(tmp_path / "all" / "cat" / "large.png", size=(9, 9))
    with pytest.raises(DataError, match=r"2 sizes; give one with data\.shape"):
        read(own(tmp_path / "all"))


def test_a_train_and_a_test_part_lie_side_by_side(tmp_path: Path) -> None:
    arrays(tmp_path / "train.npz")
    table(tmp_path / "test.csv", X[:7], Y[:7])
    found = read(own(tmp_path))
    assert (len(found.train_labels), len(found.test_labels)) == (50, 7)
    for part, number in (("train", 4), ("test", 2)):
        for name in ("a", "b"):
            for one in range(number):
                picture(tmp_path / "images" / part / name / f"{one}.png", "L")
    images = read(own(tmp_path / "images"))
    assert (len(images.train_labels), len(images.test_labels), images.inputs.shape) == (8, 4, (1, 5, 6))


# --- what is wrong --------------------------------------------------------------------------------------------------


def raw(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


SPOILED: dict[str, tuple[Callable[[Path], Path], dict[str, object]]] = {
    "there is no": (lambda at: at / "b.npz", {}),
    "expected one of .npz, .csv, .parquet, or a folder": (lambda at: raw(at / "a.pkl", b"x"), {}),
    "cannot be read: File is not a zip file": (lambda at: raw(at / "a.npz", b"x"), {}),
    "cannot be read: Object arrays": (lambda at: arrays(at / "a.npz", x=np.array([[{}]] * 50, object)), {}),
    "expected x (n, ...) and y (n,)": (lambda at: arrays(at / "a.npz", y=Y[:-1]), {}),
    "expected x_test (n, ...) and y_test": (lambda at: arrays(at / "a.npz", x_test=X), {}),
    "(4,), test samples (2,)": (lambda at: arrays(at / "a.npz", x_test=X[:, :2], y_test=Y), {}),
    "4 training and 0 test samples": (lambda at: arrays(at / "a.npz", x=X[:4], y=Y[:4]), {}),
    "missing or infinite": (lambda at: arrays(at / "a.npz", x=np.where(X > 9, np.nan, X)), {}),
    "1 classes; expected 2": (lambda at: arrays(at / "a.npz", y=Y * 0), {}),
    "is no class": (lambda at: arrays(at / "a.npz", y=X[:, 0]), {}),
    "a label is missing": (lambda at: table(at / "a.csv", y=["a", None] * 25), {}),
    "column 'city' holds no numbers": (lambda at: table(at / "a.csv", city=["Rome", "Oslo"] * 25), {}),
    "no column 'target'": (lambda at: table(at / "a.csv"), {"label": "target"}),
    "no column 'user'": (lambda at: table(at / "a.csv"), {"client": "user"}),
    "a.parquet: cannot be read": (lambda at: raw(at / "a.parquet", b"PAR1"), {}),
    "a.csv: cannot be read": (lambda at: raw(at / "a.csv", b""), {}),
    "has 4 numbers; data.shape asks for (1, 3, 3)": (lambda at: arrays(at / "a.npz"), {"shape": (1, 3, 3)}),
    "tokens must be whole numbers": (lambda at: arrays(at / "a.npz"), {"tokens": True}),
    "a label 2; with classes: 2 they are 0 to 1": (lambda at: arrays(at / "a.npz"), {"classes": 2}),
    "a label '2', which is not among": (lambda at: arrays(at / "a.npz"), {"classes": ("0", "1")}),
    "has 4,194,305 numbers": (lambda at: arrays(at / "a.npz", x=np.zeros((9, (1 << 22) + 1), np.uint8), y=Y[:9]), {}),
    "expected a folder of images for each class": (lambda at: at, {}),
    "not an image in a format": (lambda at: raw(at / "images" / "a" / "b.png", b"x").parents[1], {}),
}
"""What the error says, and data that it is said of."""


@pytest.mark.parametrize("words", SPOILED)
def test_data_that_cannot_be_used_are_one_line_that_says_where(words: str, tmp_path: Path) -> None:
    make, keys = SPOILED[words]
    with pytest.raises(DataError) as caught:
        read(own(make(tmp_path), **keys))
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arrays_that_would_fill_the_memory_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = arrays(tmp_path / "a.npz")
    with zipfile.ZipFile(path) as packed:
        size = sum(member.file_size for member in packed.infolist())
    monkeypatch.setattr("dslth.learning.own_data.MOST_BYTES", size - 1)
    with pytest.raises(DataError, match="would unpack to"):
        read(own(path))


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "digits", "path": "a.npz"}, "give one of them"),
        ({"label": "digit", "classes": 3}, "classes is a key of own data"),
        ({"path": "a-{id}.npz", "partition": {"kind": "iid"}}, "go together"),
        ({"path": "a.npz", "partition": {"kind": "own"}}, "go together"),
        ({"partition": {"kind": "clients"}}, "needs own data"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DataConfig.model_validate(keys)


def test_paths_are_relative_to_the_topology_file_and_survive_writing(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("graph: {kind: ring, peers: 3}\nexperiment: {data: {path: 'own/{id}.npz'}}\n")
    run = config.load(tmp_path / "t.yaml")
    assert run.experiment.data.of(2).path == str(tmp_path / "own" / "2.npz")
    assert config.parse(run.to_yaml(), "t") == run
    changed = config.load(
        tmp_path / "t.yaml", {"experiment": {"data": {"name": "digits", "partition": {"kind": "iid"}}}}
    )
    assert (changed.experiment.data.path, changed.experiment.data.title) == (None, "digits")


def test_where_data_lie_is_not_what_peers_must_agree_on(tmp_path: Path) -> None:
    runs = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.yaml").write_text(
            "graph: {kind: ring, peers: 3}\n"
            "experiment: {data: {path: 'a.npz'}, model: {name: './nets.py:Net', options: {width: 3}}}\n"
        )
        runs.append(config.identity(config.load(tmp_path / name / "t.yaml"), "edges"))
    assert runs[0] == runs[1]
    assert runs[0]["model.options.width"] == "3"
    assert not any(str(tmp_path) in value for value in runs[0].values())


# --- who gets what --------------------------------------------------------------------------------------------------


def divided(
    path: Path, peers: int, kind: dict[str, object], **keys: object
) -> tuple[data.Dataset, partition.Partition]:
    settings = own(path, partition=kind, **keys)
    experiment = config.load("ring").experiment.model_copy(update={"data": settings})
    dataset = data.load(settings)
    return dataset, partition.divide(experiment, peers, dataset)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_clients_keep_their_samples(suffix: str, tmp_path: Path) -> None:
    path = table(tmp_path / f"a{suffix}", user=[f"user {who}" for who in WHO])
    dataset, shares = divided(path, 3, {"kind": "clients"}, client="user")
    test = fifth(WHO, Y)
    assert dataset.shape == (4,)  # the client is no feature
    for peer, (train, own_test) in enumerate(shares.pairs):
        assert set(WHO[~test][train]) == set(WHO[test][own_test]) == {who for who in range(7) if who % 3 == peer}
    assert sum(map(len, shares.train)) == 40
    assert sum(map(len, shares.test)) == 10
    with pytest.raises(DataError, match="peer 7 would get 0 training"):
        divided(path, 8, {"kind": "clients"}, client="user")
    with pytest.raises(DataError, match="do not say whose"):
        divided(arrays(tmp_path / "a.npz"), 3, {"kind": "clients"})


def test_lists_say_whose_samples_are_whose(tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz")
    (tmp_path / "lists.txt").write_text("0 1 2 8\n\n5 4 4\n39\n")
    (tmp_path / "t.yaml").write_text(
        "graph: {kind: ring, peers: 3}\nexperiment: {data: {path: a.npz, partition: {kind: lists, file: lists.txt}}}\n"
    )
    run = config.load(tmp_path / "t.yaml")
    shares = partition.divide(run.experiment, 3, data.load(run.experiment.data))
    assert [train.tolist() for train in shares.train] == [[0, 1, 2, 8], [4, 5], [39]]
    for lists, words in (([[0], [1]], "2 lists of samples for 3 peers"), ([[0], [1], [40]], "lists sample 40")):
        with pytest.raises(ConfigError, match=words):
            divided(path, 3, {"kind": "lists", "table": lists})


def test_with_data_of_its_own_a_peer_reads_nobody_elses(tmp_path: Path) -> None:
    arrays(tmp_path / "peer-1.npz")
    (tmp_path / "t.yaml").write_text("graph: {kind: ring, peers: 3}\nexperiment: {data: {path: 'peer-{id}.npz'}}\n")
    run = config.load(tmp_path / "t.yaml", {"experiment": {"model": {"name": "mlp"}}})
    graph = topology.build(run.graph, 1)
    assert preflight(run, graph, peer=1) == ""
    with pytest.raises(DataError, match=r"there is no .*peer-0\.npz"):
        preflight(run, graph)
    arrays(tmp_path / "peer-0.npz")
    arrays(tmp_path / "peer-2.npz", y=Y % 2)
    with pytest.raises(DataError, match="those of peer 0: float32 4, 3 classes; one network must fit"):
        preflight(run, graph)
    dataset = data.load(run.experiment.data.of(1))
    shares = partition.divide(run.experiment, 3, dataset)
    assert (len(shares.train), len(shares.train[0]), len(shares.test[0]), len(shares.common)) == (1, 40, 10, 0)


# --- Hugging Face's folders -----------------------------------------------------------------------------------------


def save(held: object, path: Path) -> Path:
    held.save_to_disk(str(path))
    return path


def test_a_folder_of_hugging_face_is_the_same_data(tmp_path: Path) -> None:
    columns = {"label": Y.tolist(), **{f"f{number}": X[:, number] for number in range(4)}}
    found = read(own(save(datasets.Dataset.from_dict(columns), tmp_path / "hf")))
    assert found.digest == read(own(arrays(tmp_path / "a.npz"))).digest
    parts = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict(columns | {"who": WHO.tolist()}) for name in ("train", "test")}
    )
    found = read(own(save(parts, tmp_path / "parts"), client="who"))
    assert len(found.train_labels) == len(found.test_labels) == 50
    assert found.train_clients is not None
    assert (found.train_clients == WHO).all()


def test_images_and_names_of_classes_come_from_hugging_face_too(tmp_path: Path) -> None:
    pixels = DRAWS.integers(0, 256, (20, 6, 5, 3), np.uint8)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"img": [Image.fromarray(image) for image in pixels], "label": [0, 1] * 10}
    path = save(datasets.Dataset.from_dict(rows, features=features), tmp_path / "hf")
    found = read(own(path))
    assert (found.names, found.shape, found.train_images.dtype) == (("cat", "dog"), (3, 6, 5), np.uint8)
    assert (found.train_images[0] == pixels[0].transpose(2, 0, 1)).all()
    assert read(own(path, shape=[1, 8, 8])).shape == (1, 8, 8)


def test_tokens_come_from_hugging_face_too(tmp_path: Path) -> None:
    rows = {"ids": DRAWS.integers(0, 90, (20, 7)).tolist(), "label": ["yes", "no"] * 10}
    found = read(own(save(datasets.Dataset.from_dict(rows), tmp_path / "hf"), tokens=True))
    assert (found.shape, found.train_images.dtype, found.names) == ((7,), np.int64, ("no", "yes"))


def test_a_strange_folder_of_hugging_face_is_one_line(tmp_path: Path) -> None:
    path = save(datasets.Dataset.from_dict({"a": [1.0], "b": [2]}), tmp_path / "hf")
    with pytest.raises(DataError, match="has no column 'label'"):
        read(own(path))
    with pytest.raises(DataError, match="has no part 'train', only test"):
        read(own(save(datasets.DatasetDict({"test": datasets.Dataset.from_dict({"a": [1]})}), tmp_path / "other")))
    next(path.glob("*.arrow")).write_bytes(b"not Arrow")
    with pytest.raises(DataError, match="cannot be read"):
        read(own(path))
