"""Data sets: read from every place and form, refused when damaged, downloaded from a real server."""

import builtins
import gzip
import hashlib
import http.client
import http.server
import io
import os
import pickle
import re
import socket
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dslth import config, files, topology
from dslth.engines.base import preflight
from dslth.errors import DataError
from dslth.learning import data
from dslth.learning.dataset import Dataset
from dslth.learning.pickled import read_batch

Array = NDArray[np.uint8]

IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture(autouse=True)
def only_what_the_test_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("DSLTH_DATA_DIR", str(tmp_path / "elsewhere"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def settings(name: str, folder: Path) -> config.DataConfig:
    return config.DataConfig.model_validate({"name": name, "folder": str(folder)})


def as_bytes(dataset: Dataset) -> list[bytes]:
    return [
        array.tobytes()
        for array in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
    ]


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_are_all_there_and_every_fifth_is_a_test_sample(tmp_path: Path) -> None:
    digits = data.load(settings("digits", tmp_path))
    assert digits.train_images.shape == (1438, 1, 8, 8)
    assert digits.test_images.shape == (359, 1, 8, 8)
    assert len(digits.train_labels) + len(digits.test_labels) == 1797
    assert digits.train_images.dtype == digits.test_images.dtype == np.uint8
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int64
    assert set(digits.train_labels) == set(digits.test_labels) == set(range(digits.classes))
    assert data.DATASETS[config.DataName.DIGITS].shape == digits.train_images.shape[1:]
    assert digits.train_images.max() == 255
    assert digits.train_labels[:6].tolist() == [0, 1, 2, 3, 5, 6]  # the file begins 0 1 2 3 4 5 6
    assert digits.test_labels[0] == 4
    assert digits.train_images[0, 0, 0].tolist() == [v * 255 // 16 for v in (0, 0, 5, 13, 9, 1, 0, 0)]


def test_digits_need_no_scikit_learn_import(tmp_path: Path) -> None:
    before = set(sys.modules)
    data.load(settings("digits", tmp_path))
    assert not [name for name in set(sys.modules) - before if name.startswith("sklearn")]


# --- IDX files ------------------------------------------------------------------------------------------------------


def idx(array: Array) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def arrays(train: int = 23, test: int = 7, seed: int = 1) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [
        part
        for n in (train, test)
        for part in (rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8))
    ]


def write_idx(folder: Path, parts: list[Array], *, zipped: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(IDX_NAMES, parts, strict=True):
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(idx(part)) if zipped else idx(part))


def assert_holds(found: Dataset, parts: list[Array]) -> None:
    for images, labels, (raw_images, raw_labels) in (
        (found.train_images, found.train_labels, parts[:2]),
        (found.test_images, found.test_labels, parts[2:]),
    ):
        assert images.dtype == np.uint8
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(images, raw_images[:, None])
        np.testing.assert_array_equal(labels, raw_labels)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("zipped", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("place", [".", "named", "debian"])
def test_idx_files_are_read_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, zipped: bool, place: str
) -> None:
    parts = arrays()
    folder = tmp_path / "data"
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "debian")
    home = {".": folder, "named": folder / name, "debian": tmp_path / "debian" / name}[place]
    write_idx(home, parts, zipped=zipped)
    assert_holds(data.load(settings(name, folder)), parts)


def test_zipped_and_plain_files_may_lie_side_by_side(tmp_path: Path) -> None:
    parts = arrays()
    write_idx(tmp_path, parts, zipped=False)
    for name in IDX_NAMES[:2]:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    assert_holds(data.load(settings("mnist", tmp_path)), parts)


def test_the_folder_that_was_named_wins_over_debians(tmp_path: Path) -> None:
    write_idx(tmp_path / "debian" / "mnist", arrays(seed=1), zipped=True)
    write_idx(tmp_path / "data", arrays(seed=2), zipped=True)
    assert_holds(data.load(settings("mnist", tmp_path / "data")), arrays(seed=2))


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSLTH_DATA_DIR", str(tmp_path / "mine"))
    write_idx(tmp_path / "mine" / "mnist", arrays(), zipped=True)
    assert_holds(data.load(config.DataConfig(name="mnist")), arrays())


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _wrong_magic(content: bytes) -> bytes:
    return b"\0\0\x0d" + content[3:]


@pytest.mark.parametrize("which", IDX_NAMES)
@pytest.mark.parametrize(
    "damage",
    [_cut, _wrong_magic, lambda content: content + b"\0", lambda content: content[:3], lambda _: b""],
    ids=["cut", "magic", "too-long", "no-header", "empty"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["gz", "plain"])
def test_a_damaged_idx_file_is_named(
    tmp_path: Path, which: str, damage: Callable[[bytes], bytes], zipped: bool
) -> None:
    write_idx(tmp_path, arrays(), zipped=zipped)
    path = tmp_path / (which + ".gz" * zipped)
    content = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
    path.write_bytes(gzip.compress(damage(content)) if zipped else damage(content))
    with pytest.raises(DataError, match=re.escape(str(path))):
        data.load(settings("mnist", tmp_path))


@pytest.mark.parametrize("keep", [0, 5, 200, -1], ids=["empty", "header", "middle", "last-byte"])
def test_a_cut_off_gzip_file_is_named(tmp_path: Path, keep: int) -> None:
    write_idx(tmp_path, arrays(), zipped=True)
    path = tmp_path / f"{IDX_NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=re.escape(str(path))):
        data.load(settings("mnist", tmp_path))


def test_a_plain_file_with_a_zipped_files_name_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path, arrays(), zipped=True)
    path = tmp_path / f"{IDX_NAMES[1]}.gz"
    path.write_bytes(idx(arrays()[1]))
    with pytest.raises(DataError, match=re.escape(str(path))):
        data.load(settings("mnist", tmp_path))


def test_a_gzip_file_damaged_inside_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path, arrays(), zipped=True)
    path = tmp_path / f"{IDX_NAMES[0]}.gz"
    content = bytearray(path.read_bytes())
    content[10] ^= 0xFF  # the first block's type
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(path))):
        data.load(settings("mnist", tmp_path))


def test_an_idx_file_that_claims_2_to_the_64_bytes_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path, arrays(), zipped=False)
    path = tmp_path / IDX_NAMES[0]
    path.write_bytes(b"\0\0\x08\x04" + b"\0\1\0\0" * 4)
    with pytest.raises(DataError, match=re.escape(str(path))):
        data.load(settings("mnist", tmp_path))


def _one_label_short(parts: list[Array]) -> list[Array]:
    return [parts[0], parts[1][:-1], *parts[2:]]


def _other_side(parts: list[Array]) -> list[Array]:
    return [parts[0], parts[1], parts[2][:, :27], parts[3]]


def _swapped(parts: list[Array]) -> list[Array]:
    return [parts[1], parts[0], *parts[2:]]


def _label_10(parts: list[Array]) -> list[Array]:
    return [*parts[:3], np.append(parts[3][:-1], np.uint8(10))]


@pytest.mark.parametrize("change", [_one_label_short, _other_side, _swapped, _label_10])
def test_idx_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, change: Callable[[list[Array]], list[Array]]
) -> None:
    write_idx(tmp_path, change(arrays()), zipped=True)
    with pytest.raises(DataError, match=f"{re.escape(str(tmp_path))} do not belong together"):
        data.load(settings("mnist", tmp_path))


def test_debians_fashion_mnist_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debian = Path("/usr/share/datasets")
    if not (debian / "fashion-mnist").is_dir():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    monkeypatch.setattr(data, "DEBIAN", debian)
    found = data.load(settings("fashion-mnist", tmp_path))
    assert found.train_images.shape == (60_000, 1, 28, 28)
    assert found.test_images.shape == (10_000, 1, 28, 28)
    assert np.bincount(found.train_labels).tolist() == [6000] * 10
    assert np.bincount(found.test_labels).tolist() == [1000] * 10
    assert list(tmp_path.iterdir()) == []


# --- CIFAR-10 -------------------------------------------------------------------------------------------------------


def batch(number: int, n: int = 3) -> tuple[Array, Array]:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (n, 3072), np.uint8), rng.integers(0, 10, n, np.uint8)


def binary(images: Array, labels: Array) -> bytes:
    return np.concatenate([labels[:, None], images], 1).tobytes()


def pickled(images: Array, labels: Array, protocol: int = 2) -> bytes:
    rest = {b"batch_label": b"training batch", b"filenames": [b"a.png"] * len(labels)}
    return pickle.dumps({b"data": images, b"labels": labels.tolist(), **rest}, protocol=protocol)


def python2_pickled(images: Array, labels: Array, dtype: bytes | None = None) -> bytes:
    """Write the batch as Python 2 and its numpy wrote the official files: protocol 2, all memoised from 1 on."""
    kept = 0

    def put(content: bytes) -> bytes:
        nonlocal kept
        kept += 1
        return content + (b"q" + bytes([kept]) if kept < 256 else b"r" + kept.to_bytes(4, "little"))

    def text(content: bytes) -> bytes:
        return put(b"U" + bytes([len(content)]) + content)

    def number(n: int) -> bytes:
        return b"K" + bytes([n]) if n < 256 else b"M" + n.to_bytes(2, "little")

    def listed(items: Iterable[bytes]) -> bytes:
        """Fill a list as cPickle does, a thousand at a time."""
        begin, pieces = put(b"]"), list(items)
        return begin + b"".join(b"(" + b"".join(pieces[i : i + 1000]) + b"e" for i in range(0, len(pieces), 1000))

    raw = images.tobytes()
    written = put(b"\x80\x02}") + b"("
    written += text(b"batch_label") + text(b"training batch 1 of 5")
    written += text(b"labels") + listed(number(label) for label in labels.tolist())
    written += text(b"data") + put(b"cnumpy.core.multiarray\n_reconstruct\n") + put(b"cnumpy\nndarray\n")
    written += put(b"K\x00\x85") + text(b"b") + put(b"\x87") + put(b"R")
    written += b"(K\x01" + put(number(len(images)) + number(images.shape[1]) + b"\x86")
    written += dtype or (
        put(b"cnumpy\ndtype\n") + text(b"u1") + put(b"K\x00K\x01\x87") + put(b"R")
        + b"(K\x03" + text(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + put(b"K\x00t") + b"b"
    )  # fmt: skip
    written += b"\x89" + put(b"T" + len(raw).to_bytes(4, "little") + raw) + put(b"t") + b"b"
    written += text(b"filenames") + listed(text(b"camion_s_000148.png") for _ in labels)
    return written + b"u."


def write_cifar(folder: Path, form: Callable[[Array, Array], bytes], suffix: str, names: list[str] = BATCHES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(BATCHES):
        if name in names:
            (folder / (name + suffix)).write_bytes(form(*batch(number)))


def test_a_batch_as_large_as_the_official_ones_is_read(tmp_path: Path) -> None:
    images, labels = batch(7, 10_000)
    write_cifar(tmp_path, lambda *_: python2_pickled(images, labels), "", ["data_batch_1", "test_batch"])
    found = data.load(settings("cifar10", tmp_path))
    np.testing.assert_array_equal(found.train_images, images.reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(found.train_labels, labels)


def test_the_official_form_is_what_unpickling_reads() -> None:
    images, labels = batch(0, 300)
    read = pickle.loads(python2_pickled(images, labels), encoding="bytes")
    assert set(read) == {b"batch_label", b"labels", b"data", b"filenames"}
    np.testing.assert_array_equal(read[b"data"], images)
    assert read[b"labels"] == labels.tolist()


def assert_holds_cifar(found: Dataset, numbers: tuple[int, ...] = (0, 1, 2, 3, 4)) -> None:
    train = [batch(number) for number in numbers]
    np.testing.assert_array_equal(
        found.train_images, np.concatenate([images for images, _ in train]).reshape(-1, 3, 32, 32)
    )
    np.testing.assert_array_equal(found.train_labels, np.concatenate([labels for _, labels in train]))
    np.testing.assert_array_equal(found.test_images, batch(5)[0].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(found.test_labels, batch(5)[1])
    assert found.train_images.dtype == np.uint8
    assert found.train_labels.dtype == found.test_labels.dtype == np.int64


FORMS = {
    "binary": (binary, ".bin", "cifar-10-batches-bin"),
    "python-2": (python2_pickled, "", "cifar-10-batches-py"),
    "protocol-2": (pickled, "", "cifar-10-batches-py"),
    "protocol-4": (lambda images, labels: pickled(images, labels, 4), "", "cifar-10-batches-py"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", [".", "inner", "cifar10", "cifar10/inner"])
def test_cifar10_is_read_where_it_lies(tmp_path: Path, form: str, place: str) -> None:
    write, suffix, inner = FORMS[form]
    write_cifar(tmp_path / place.replace("inner", inner), write, suffix)
    assert_holds_cifar(data.load(settings("cifar10", tmp_path)))


@pytest.mark.parametrize("form", FORMS)
def test_cifar10_may_be_a_part_of_the_batches(tmp_path: Path, form: str) -> None:
    write, suffix, _ = FORMS[form]
    write_cifar(tmp_path, write, suffix, ["data_batch_2", "data_batch_4", "test_batch"])
    assert_holds_cifar(data.load(settings("cifar10", tmp_path)), (1, 3))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        binary(*batch(0))[:-1],
        binary(*batch(0)) + b"\0",
        binary(batch(0)[0], np.array([0, 10, 1], np.uint8)),
    ],
    ids=["empty", "short", "long", "label-10"],
)
@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
def test_a_damaged_binary_batch_is_named(tmp_path: Path, content: bytes, name: str) -> None:
    write_cifar(tmp_path, binary, ".bin")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / name))):
        data.load(settings("cifar10", tmp_path))


IMAGES, LABELS = batch(0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02}(",
        b"not a pickle",
        pickled(IMAGES, LABELS)[:-20],
        pickle.dumps([1, 2], 2),
        pickle.dumps({b"data": IMAGES}, 2),
        pickle.dumps({b"labels": LABELS.tolist()}, 2),
        pickled(IMAGES[:, :3000], LABELS),
        pickled(IMAGES, LABELS[:2]),
        pickled(IMAGES.astype(np.int64), LABELS),
        pickled(IMAGES, np.array([0, 1, 10])),
        pickled(IMAGES, np.array([0, 1, -1])),
        pickled(IMAGES[:0], LABELS[:0]),
        pickle.dumps({b"data": IMAGES, b"labels": "abc"}, 2),
        pickle.dumps({b"data": IMAGES, b"labels": {}}, 2),
        b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.",
        pickle.dumps(Path("data")),
    ],
    ids=[
        "empty",
        "cut",
        "text",
        "cut-later",
        "list",
        "no-labels",
        "no-data",
        "narrow",
        "few-labels",
        "wide-numbers",
        "label-10",
        "label--1",
        "no-samples",
        "text-labels",
        "dict-labels",
        "array-alone",
        "other-class",
    ],
)
def test_a_damaged_python_batch_is_named(tmp_path: Path, content: bytes) -> None:
    write_cifar(tmp_path, pickled, "")
    (tmp_path / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "data_batch_3"))):
        data.load(settings("cifar10", tmp_path))


class Calls:
    """Pickles as a function call, as an attacker would write it."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def _memmap(marker: str) -> bytes:
    return b"cnumpy\nmemmap\n(V" + marker.encode() + b"\nVuint8\nVw+\nK\x00K\x04tR."


def _getattr_chain(marker: str) -> bytes:
    """Reach os.system through an attribute of a numpy module, as protocol 4 allows."""
    module, name, command = b"numpy.testing._private.utils", b"os.system", f"touch '{marker}'".encode()
    parts = b"".join(b"\x8c" + bytes([len(part)]) + part for part in (module, name))
    return b"\x80\x04" + parts + b"\x93X" + len(command).to_bytes(4, "little") + command + b"\x85R."


@pytest.mark.parametrize(
    "attack",
    [
        lambda marker: pickle.dumps(Calls(os.system, f"touch '{marker}'"), 2),
        lambda marker: pickle.dumps({b"data": Calls(os.system, f"touch '{marker}'"), b"labels": [1]}, 4),
        lambda marker: pickle.dumps(Calls(builtins.eval, f"open({marker!r}, 'w').close()"), 2),
        lambda marker: pickle.dumps(Calls(builtins.exec, f"open({marker!r}, 'w').close()"), 5),
        lambda marker: pickle.dumps(Calls(np.save, marker, np.zeros(3)), 2),
        _memmap,
        _getattr_chain,
    ],
    ids=["os.system", "os.system-inside", "eval", "exec", "numpy.save", "numpy.memmap", "attribute-chain"],
)
@pytest.mark.parametrize("name", ["data_batch_1", "test_batch"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(
    tmp_path: Path, attack: Callable[[str], bytes], name: str
) -> None:
    marker = tmp_path / "marker.npy"
    payload = attack(str(marker))
    pickle.loads(payload)  # proves that the attack works where nothing stops it
    assert marker.exists()
    marker.unlink()
    write_cifar(tmp_path, pickled, "")
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(DataError, match=rf"{name}: not a CIFAR-10 batch in Python form: it asks for") as caught:
        data.load(settings("cifar10", tmp_path))
    assert "take the binary version, https://" in str(caught.value)
    assert not marker.exists()


class Made:
    """Pickles as a call and the state that its result is given."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], state: Any) -> None:
        self.made = function, arguments, state

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
        return self.made


def _crafted(dtype: Made) -> bytes:
    """Write a batch whose pixels numpy is to take for addresses."""
    state = (1, (3,), dtype, False, b"\1" * 24)
    array = Made(np.array(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state)
    return pickle.dumps({b"data": array, b"labels": [1, 2, 3]}, 2)


READ = """
import sys
from pathlib import Path
from dslth import config
from dslth.learning import data
try:
    data.load(config.DataConfig(name="cifar10", folder=sys.argv[1]))
except data.DataError as error:
    print(error)
"""


@pytest.mark.parametrize("base", ["O", "V8"])
@pytest.mark.parametrize("offset", [0, 1 << 30, -(1 << 30)])
def test_a_data_type_that_numpy_dies_of_is_refused(tmp_path: Path, base: str, offset: int) -> None:
    dtype = Made(np.dtype, (base, False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), offset)}, 8, 1, 1))
    write_cifar(tmp_path, pickled, "")
    (tmp_path / "data_batch_1").write_bytes(_crafted(dtype))
    done = subprocess.run([sys.executable, "-c", READ, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.returncode  # a signal is what this test is about
    assert "data_batch_1: not a CIFAR-10 batch in Python form" in done.stdout


@pytest.mark.parametrize("flags", [1, 63, 255])
def test_any_flag_of_the_data_type_is_refused(tmp_path: Path, flags: int) -> None:
    content = python2_pickled(*batch(0))
    assert content.count(b"K\x00tq") == 1
    write_cifar(tmp_path, lambda *_: content.replace(b"K\x00tq", b"K" + bytes([flags]) + b"tq"), "")
    with pytest.raises(DataError, match="it holds no array of bytes with 3072 for each label"):
        data.load(settings("cifar10", tmp_path))


@pytest.mark.parametrize("opcode", [b"N", b"]", b"h\x01", b"("])
def test_a_pickle_of_endless_work_is_given_up(opcode: bytes) -> None:
    with pytest.raises(ValueError, match="at byte"):
        read_batch(b"\x80\x02}q\x01" + 2_000_000 * opcode + b".", 3072)


PIECES = [
    *[
        b"}",
        b"(",
        b"]",
        b"e",
        b"a",
        b"u",
        b"s",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"R",
        b"b",
        b"N",
        b"\x88",
        b"\x89",
        b".",
    ],
    *[
        b"h\x01",
        b"h\x05",
        b"q\x01",
        b"\x94",
        b"\x93",
        b"K\x00",
        b"J\xff\xff\xff\xff",
        b"M\x00\x0c",
        b"0",
        b"2",
        b"S'\\x'\n",
    ],
    *[
        b"cnumpy\ndtype\n",
        b"cnumpy\nndarray\n",
        b"c_codecs\nencode\n",
        b"cos\nsystem\n",
        b"U\x02u1",
        b"X\x01\0\0\0b",
        b"Vx\n",
    ],
]
SMALL = [form(*(part[:2] for part in batch(0))) for form in (python2_pickled, pickled, lambda *b: pickled(*b, 4))]


@given(st.data(), st.sampled_from(SMALL))
def test_a_pickle_wounded_anywhere_is_read_or_refused(draw: st.DataObject, content: bytes) -> None:
    ends = st.integers(0, 200) | st.integers(len(content) - 200, len(content))  # what stands between is pixels
    for _ in range(draw.draw(st.integers(1, 3))):
        at, taken = draw.draw(ends), draw.draw(st.integers(0, 3))
        put = draw.draw(st.sampled_from(PIECES) | st.binary(max_size=3))
        content = content[:at] + put + content[at + taken :]
    with suppress(ValueError):
        raw, labels = read_batch(content, 3072)
        assert len(raw) == 3072 * len(labels)
        assert all(type(label) is int for label in labels)


# --- files that are no data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [0, 2, 33, 64, 255])
def test_an_idx_file_of_many_dimensions_is_refused(tmp_path: Path, dimensions: int) -> None:
    write_idx(tmp_path, arrays(), zipped=False)
    path = tmp_path / IDX_NAMES[0]
    path.write_bytes(bytes([0, 0, 8, dimensions]) + b"\0\0\0\1" * dimensions + b"\0")
    with pytest.raises(DataError, match=re.escape(f"{path}: not a complete IDX file")):
        data.load(settings("mnist", tmp_path))


def test_a_file_that_unpacks_to_more_than_any_data_set_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MOST_BYTES", 10_000_000)
    write_idx(tmp_path, arrays(), zipped=True)
    path = tmp_path / f"{IDX_NAMES[0]}.gz"
    path.write_bytes(gzip.compress(bytes(200_000_000)))
    tracemalloc.start()
    with pytest.raises(DataError, match=re.escape(f"{path}: cannot be read: larger than 10,000,000 bytes")):
        data.load(settings("mnist", tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30_000_000


def test_a_file_larger_than_any_data_set_is_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path, pickled, "")
    with (tmp_path / "data_batch_1").open("wb") as sparse:
        sparse.truncate(data.MOST_BYTES + 1)
    with pytest.raises(DataError, match="data_batch_1: cannot be read: larger than 268,435,456 bytes"):
        data.load(settings("cifar10", tmp_path))


@pytest.mark.parametrize("special", ["/dev/zero", "pipe"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, special: str) -> None:
    path = Path(special)
    if special == "pipe":
        path = tmp_path / special
        os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        files.read(path, 1000)


# --- a part of the data set -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        ([10_000], 5_000, "10,000 training and 5,000 test images; 40,000 and 5,000 of the whole data set are missing"),
        ([10_000] * 2, 10_000, "20,000 training and 10,000 test images; 30,000 and 0 of the whole"),
        ([10_000] * 5, 10_000, ""),
    ],
)
def test_a_part_of_cifar10_is_read_and_what_is_missing_noted(
    tmp_path: Path, train: list[int], test: int, says: str
) -> None:
    for number, n in enumerate(train, 1):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(bytes(n * 3073))
    (tmp_path / "test_batch.bin").write_bytes(bytes(test * 3073))
    found = data.load(settings("cifar10", tmp_path))
    assert (len(found.train_labels), len(found.test_labels)) == (sum(train), test)
    assert found.note.startswith(f"cifar10: {tmp_path} has " if says else "")
    assert says in found.note
    assert bool(found.note) == bool(says)


# --- download -------------------------------------------------------------------------------------------------------


class Server(http.server.HTTPServer):
    """Serves a folder on a free port of the loopback and notes what was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def remote(self, name: str, content: bytes) -> data.Remote:
        """Put a file up for download."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / name).write_bytes(content)
        return data.Remote(f"{self.url}/{name}", hashlib.md5(content).hexdigest())


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.server.asked.append(name)
        if name == "no-http":
            self.wfile.write(b"220 smtp.example.org ready\r\n")
            return
        if name == "cut-chunk":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nonly this")
            return
        path = self.server.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "served") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def dead_url() -> Iterator[str]:
    """Return the address of a port that is taken and that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_download_with_the_right_md5_is_kept(tmp_path: Path, server: Server) -> None:
    content = np.random.default_rng(1).bytes(200_000)
    remote = server.remote("a.bin", content)
    calls: list[tuple[str, int, int]] = []
    folder = tmp_path / "new" / "folder"
    path = data.download(remote, folder, "a data set", lambda *call: calls.append(call))
    assert path == folder / "a.bin"
    assert path.read_bytes() == content
    assert [file.name for file in folder.iterdir()] == ["a.bin"]
    assert {(name, total) for name, _, total in calls} == {("a.bin", 200_000)}
    done = [done for _, done, _ in calls]
    assert len(done) > 1
    assert done == sorted(set(done))
    assert done[-1] == 200_000
    assert data.download(remote, folder, "a data set") == path
    assert server.asked == ["a.bin"]  # a file that is there is not asked for again


def test_an_empty_file_can_be_downloaded(tmp_path: Path, server: Server) -> None:
    assert data.download(server.remote("empty", b""), tmp_path, "a data set").read_bytes() == b""


def test_a_download_with_the_wrong_md5_leaves_nothing(tmp_path: Path, server: Server) -> None:
    server.remote("a.bin", b"what arrives")
    remote = data.Remote(f"{server.url}/a.bin", hashlib.md5(b"what was promised").hexdigest())
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match="MD5") as caught:
        data.download(remote, folder, "a data set")
    text = str(caught.value)
    assert text.startswith("a data set: ")
    assert remote.url in text
    assert str(folder) in text
    assert hashlib.md5(b"what arrives").hexdigest() in text
    assert list(folder.iterdir()) == []


def test_a_server_that_is_down_is_named_with_the_folder(tmp_path: Path, dead_url: str) -> None:
    remote = data.Remote(f"{dead_url}/a.bin", "0" * 32)
    with pytest.raises(DataError, match="refused") as caught:
        data.download(remote, tmp_path / "folder", "a data set")
    assert remote.url in str(caught.value)
    assert f"put a.bin into {tmp_path / 'folder'}" in str(caught.value)
    assert list(tmp_path.rglob("*")) == []


def test_a_file_that_the_server_has_not_is_named(tmp_path: Path, server: Server) -> None:
    remote = data.Remote(f"{server.url}/absent.bin", "0" * 32)
    with pytest.raises(DataError, match=re.escape(remote.url)):
        data.download(remote, tmp_path / "folder", "a data set")
    assert server.asked == ["absent.bin"]
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("name", ["no-http", "cut-chunk"])
def test_a_server_that_breaks_off_or_talks_otherwise_is_named(tmp_path: Path, server: Server, name: str) -> None:
    remote = data.Remote(f"{server.url}/{name}", "0" * 32)
    with pytest.raises(DataError, match=re.escape(remote.url)):
        data.download(remote, tmp_path / "folder", "a data set")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=f"cannot write {re.escape(str(tmp_path / 'file'))}"):
        data.download(server.remote("a.bin", b"abc"), tmp_path / "file" / "folder", "a data set")


def test_a_download_without_an_end_is_broken_off(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MOST_BYTES", 100_000)
    remote = server.remote("a.bin", bytes(200_000))
    with pytest.raises(DataError, match=r"cannot be fetched \(it sends more than 100,000 bytes\)"):
        data.download(remote, tmp_path / "folder", "a data set")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_missing_idx_files_are_downloaded_once(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    parts = arrays()
    names = [f"{stem}.gz" for stem in IDX_NAMES]
    remotes = tuple(server.remote(file, gzip.compress(idx(part))) for file, part in zip(names, parts, strict=True))
    assert [remote.name for remote in data.IDX_FILES[name]] == names
    monkeypatch.setitem(data.IDX_FILES, name, remotes)
    seen: set[str] = set()
    folder = tmp_path / "data"
    first = data.load(settings(name, folder), lambda file, done, total: seen.add(file))
    assert_holds(first, parts)
    assert seen == set(names)
    assert sorted(file.name for file in (folder / name).iterdir()) == sorted(names)
    again = data.load(settings(name, folder))
    assert as_bytes(again) == as_bytes(first)
    assert server.asked == names


def test_an_interrupted_idx_download_continues_where_it_was(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = arrays()
    names = [f"{stem}.gz" for stem in IDX_NAMES]
    remotes = [server.remote(file, gzip.compress(idx(part))) for file, part in zip(names, parts, strict=True)]
    wrong = [*remotes[:2], data.Remote(remotes[2].url, "0" * 32), remotes[3]]
    monkeypatch.setitem(data.IDX_FILES, "mnist", tuple(wrong))
    with pytest.raises(DataError, match=re.escape(f"{names[2]} gave")):
        data.load(settings("mnist", tmp_path))
    monkeypatch.setitem(data.IDX_FILES, "mnist", tuple(remotes))
    assert_holds(data.load(settings("mnist", tmp_path)), parts)
    assert server.asked == [*names[:3], *names[2:]]


def tar(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


CIFAR_MEMBERS = {f"cifar-10-batches-bin/{name}.bin": binary(*batch(number)) for number, name in enumerate(BATCHES)}


def test_missing_cifar10_is_downloaded_and_only_its_batches_unpacked(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"cifar-10-batches-bin/readme.html": b"<p>", "../../escaped.txt": b"out", "/absolute.bin": b"out"}
    remote = server.remote(data.CIFAR10_ARCHIVE.name, tar({**others, **CIFAR_MEMBERS}))
    monkeypatch.setattr(data, "CIFAR10_ARCHIVE", remote)
    folder = tmp_path / "data"
    seen: list[str] = []
    first = data.load(settings("cifar10", folder), lambda name, done, total: seen.append(name))
    assert_holds_cifar(first)
    assert set(seen) == {remote.name}
    unpacked = {str(path.relative_to(folder / "cifar10")) for path in folder.rglob("*") if path.is_file()}
    assert unpacked == {remote.name, *CIFAR_MEMBERS}
    assert {path.name for path in tmp_path.iterdir()} == {"data", "served"}
    assert as_bytes(data.load(settings("cifar10", folder))) == as_bytes(first)
    assert server.asked == [remote.name]


def test_batches_of_an_archive_cannot_leave_the_folder(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {f"../../../{name}": content for name, content in CIFAR_MEMBERS.items()}
    monkeypatch.setattr(data, "CIFAR10_ARCHIVE", server.remote("a.tar.gz", tar(members)))
    folder = tmp_path / "data"
    assert_holds_cifar(data.load(settings("cifar10", folder)))
    outside = [path for path in tmp_path.rglob("*.bin") if folder not in path.parents]
    assert outside == []


def test_an_archive_without_batches_is_refused(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CIFAR10_ARCHIVE", server.remote("a.tar.gz", tar({"readme.html": b"<p>"})))
    with pytest.raises(DataError, match=r"has no data_batch_1 and test_batch after unpacking a\.tar\.gz"):
        data.load(settings("cifar10", tmp_path / "data"))


@pytest.mark.parametrize("content", [b"", b"not an archive", tar(CIFAR_MEMBERS)[:-100]], ids=["empty", "text", "cut"])
def test_a_damaged_archive_put_there_by_hand_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cifar10").mkdir()
    path = tmp_path / "cifar10" / data.CIFAR10_ARCHIVE.name
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(path))):
        data.load(settings("cifar10", tmp_path))


def test_an_archive_damaged_inside_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar10").mkdir()
    path = tmp_path / "cifar10" / data.CIFAR10_ARCHIVE.name
    plain = gzip.decompress(tar({"cifar-10-batches-bin/data_batch_1.bin": binary(*batch(0, 150))}))
    deflate = zlib.compressobj(wbits=31)
    good = deflate.compress(plain[:300_000]) + deflate.flush(zlib.Z_FULL_FLUSH)
    content = good + b"\xff" * 1000  # a block of a kind that does not exist, amid the batch
    path.write_bytes(content)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(data, "CIFAR10_ARCHIVE", data.Remote(data.CIFAR10_ARCHIVE.url, md5))
    with pytest.raises(DataError, match=re.escape(str(path))):
        data.load(settings("cifar10", tmp_path))


def test_an_interrupted_unpacking_does_not_pass_for_the_whole_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = [BATCHES[i] for i in (0, 2, 3, 5, 4, 1)]  # the test batch before the last training batches
    members = {f"cifar-10-batches-bin/{name}.bin": CIFAR_MEMBERS[f"cifar-10-batches-bin/{name}.bin"] for name in order}
    whole = tar(members)
    md5 = hashlib.md5(whole, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(data, "CIFAR10_ARCHIVE", data.Remote(data.CIFAR10_ARCHIVE.url, md5))
    (tmp_path / "cifar10").mkdir()
    path = tmp_path / "cifar10" / data.CIFAR10_ARCHIVE.name
    path.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(DataError, match=re.escape(str(path))):
        data.load(settings("cifar10", tmp_path))
    path.write_bytes(whole)
    assert_holds_cifar(data.load(settings("cifar10", tmp_path)))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_data_that_are_nowhere_are_named_with_where_to_put_them(
    tmp_path: Path, dead_url: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "cifar10":
        monkeypatch.setattr(data, "CIFAR10_ARCHIVE", data.Remote(f"{dead_url}/archive.tar.gz", "0" * 32))
        file = "archive.tar.gz"
    else:
        files = tuple(data.Remote(f"{dead_url}/{remote.name}", remote.md5) for remote in data.IDX_FILES[name])
        monkeypatch.setitem(data.IDX_FILES, name, files)
        file = files[0].name
    with pytest.raises(DataError, match=f"^{name}: not found") as caught:
        data.load(settings(name, tmp_path / "data"))
    assert f"{dead_url}/{file}" in str(caught.value)
    assert f"put {file} into {tmp_path / 'data' / name}" in str(caught.value)


def test_what_is_missing_is_said_before_a_run(tmp_path: Path) -> None:
    write_cifar(tmp_path, lambda *_: binary(*batch(1, 200)), ".bin")
    data_settings = {"name": "cifar10", "folder": str(tmp_path), "partition": {"kind": "iid"}}
    run = config.load("ring", {"experiment": {"data": data_settings}, "graph": {"kind": "ring", "peers": 3}})
    note = preflight(run, topology.build(run.graph, 1))
    assert note.startswith(f"cifar10: {tmp_path} has 1,000 training and 200 test images; 49,000 and 9,800 of the whole")


def test_a_data_set_is_found_where_it_would_be_read_from(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    for name in ("data_batch_2.bin", "test_batch.bin"):
        (tmp_path / "cifar10" / name).touch()
    for file in data.IDX_FILES[config.DataName.MNIST]:
        (tmp_path / file.name.removesuffix(".gz")).touch()
    there = {name: data.find(config.DataConfig(name=name, folder=str(tmp_path))) for name in config.DataName}
    assert there[config.DataName.DIGITS].is_file()
    assert (there[config.DataName.MNIST], there[config.DataName.CIFAR10]) == (tmp_path, tmp_path / "cifar10")
    elsewhere = config.DataConfig(name=config.DataName.CIFAR10, folder=str(tmp_path / "elsewhere"))
    assert data.find(elsewhere) is None
