"""The data sets that dslth knows by name: found in a folder or downloaded, checked, and held as bytes."""

import gzip
import hashlib
import importlib.metadata
import tarfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from math import prod
from pathlib import Path

import numpy as np

from dslth import config, files
from dslth.config import DataName
from dslth.errors import DataError
from dslth.learning import own_data
from dslth.learning.dataset import CLASSES, Dataset, Images, Labels
from dslth.learning.pickled import read_batch

__all__ = [
    "CIFAR10_ARCHIVE",
    "DATASETS",
    "IDX_FILES",
    "Remote",
    "Source",
    "download",
    "find",
    "keep",
    "load",
]

Progress = Callable[[str, int, int], None]

DEBIAN = Path("/usr/share/datasets")
TIMEOUT = 20.0
"""Seconds without a byte after which a download is given up."""
MOST_BYTES = 1 << 28
"""Of a file, unpacked; the largest, CIFAR-10's archive, has 170 MB."""
CIFAR10_BATCHES, CIFAR10_BATCH = 5, 10_000
"""Training batches of the whole CIFAR-10, which also has one of test images, and the images of each batch."""


@dataclass(frozen=True)
class Remote:
    """A file to download and the MD5 that its publisher states."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.url.rpartition("/")[2]


def _idx_files(base: str, md5s: tuple[str, str, str, str]) -> tuple[Remote, ...]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(Remote(f"{base}/{name}-ubyte.gz", md5) for name, md5 in zip(names, md5s, strict=True))


IDX_FILES: Mapping[str, tuple[Remote, ...]] = {
    DataName.MNIST: _idx_files(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    DataName.FASHION_MNIST: _idx_files(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
}
CIFAR10_ARCHIVE = Remote("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")


def load(settings: config.DataConfig, progress: Progress | None = None) -> Dataset:
    """Read a data set, downloading it first if it is in none of its places.

    Those are the data folder (``data.folder``, ``DSLTH_DATA_DIR`` or the user's cache) and its subfolder with the data
    set's name; for MNIST and Fashion-MNIST also Debian's ``/usr/share/datasets``. ``progress(name, done, total)`` is
    called as bytes arrive. With ``data.path``, or a plugin's name, they are the user's own. What was kept is not read
    again.

    Raises DataError.
    """
    if (kept := _kept.pop(_key(settings), None)) is not None:
        return kept
    return own_data.read(settings) if settings.own else DATASETS[settings.name].read(settings, progress)


def find(settings: config.DataConfig) -> Path | None:
    """Return the file or folder that a data set would be read from; None if it would be downloaded first."""
    return Path(settings.place) if settings.own else DATASETS[settings.name].find(settings)


def keep(settings: config.DataConfig, dataset: Dataset) -> None:
    """Keep a data set that is already there for the next ``load`` in this process."""
    _kept.clear()
    _kept[_key(settings)] = dataset


_kept: dict[str, Dataset] = {}


def _key(settings: config.DataConfig) -> str:
    """Return what is read, whoever is given what of it."""
    read = (
        settings
        if settings.path is not None
        else settings.model_copy(update={"folder": str(config.data_folder(settings))})
    )
    return read.model_dump_json(exclude={"partition", "test_samples", "validation"})


# --- digits ---------------------------------------------------------------------------------------------------------


def _digits(settings: config.DataConfig, progress: Progress | None) -> Dataset:
    """Read scikit-learn's copy of the UCI digits; every fifth scan is a test sample.

    The file is read in place: importing scikit-learn would cost each peer 60 MB and a second.
    """
    path = _find_digits(settings)
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    except (OSError, ValueError) as error:
        raise DataError(f"digits: {path} cannot be read ({error}); reinstall scikit-learn") from None
    images = (table[:, :64] * 255 // 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    test = np.arange(len(table)) % 5 == 4
    return Dataset(images[~test], table[~test, 64], images[test], table[test, 64])


def _find_digits(settings: config.DataConfig) -> Path:
    return Path(str(importlib.metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")))


# --- MNIST, Fashion-MNIST -------------------------------------------------------------------------------------------


def _idx(settings: config.DataConfig, progress: Progress | None) -> Dataset:
    name, files, home = settings.name, IDX_FILES[settings.name], _find_idx(settings)
    if home is None:
        home = config.data_folder(settings) / name
        for file in files:
            download(file, home, name, progress)
    arrays = []
    for file in files:
        path = _variant(home, file.name)
        assert path is not None  # noqa: S101  (found or downloaded above)
        arrays.append(_read_idx(path))
    train_images, train_labels, test_images, test_labels = arrays
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or labels.max(initial=0) >= CLASSES:
            raise DataError(f"{name}: the files under {home} do not belong together: {images.shape}, {labels.shape}")
    return Dataset(
        train_images[:, None], train_labels.astype(np.int64), test_images[:, None], test_labels.astype(np.int64)
    )


def _find_idx(settings: config.DataConfig) -> Path | None:
    name, folder = settings.name, config.data_folder(settings)
    places = [folder, folder / name, DEBIAN / name]
    return next((place for place in places if all(_variant(place, file.name) for file in IDX_FILES[name])), None)


def _variant(folder: Path, name: str) -> Path | None:
    """Find a file, gzipped or not."""
    return next((path for path in (folder / name, folder / name.removesuffix(".gz")) if path.is_file()), None)


def _read_idx(path: Path) -> Images:
    """Read an IDX file of unsigned bytes: magic 0, 0, 8, dimensions, big-endian sizes, data."""
    raw = _read(path, unzip=path.suffix == ".gz")
    dimensions = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))
    if dimensions not in (1, 3) or len(raw) != 4 + 4 * dimensions + prod(shape):
        raise DataError(f"{path}: not a complete IDX file of bytes; delete it and get it again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _read(path: Path, *, unzip: bool = False) -> bytes:
    try:
        return files.read(path, MOST_BYTES, unzip=unzip)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


# --- CIFAR-10 -------------------------------------------------------------------------------------------------------

_BINARY = ("cifar-10-batches-bin", "data_batch_{}.bin", "test_batch.bin")
_PYTHON = ("cifar-10-batches-py", "data_batch_{}", "test_batch")


def _cifar10(settings: config.DataConfig, progress: Progress | None) -> Dataset:
    folder = config.data_folder(settings)
    found = _cifar10_batches(folder)
    if found is None:
        archive = download(CIFAR10_ARCHIVE, folder / "cifar10", "cifar10", progress)
        _extract(archive, folder / "cifar10")
        found = _cifar10_batches(folder)
    if found is None:
        raise DataError(f"cifar10: {folder} has no data_batch_1 and test_batch after unpacking {CIFAR10_ARCHIVE.name}")
    train, test, read = found
    train_images, train_labels = zip(*map(read, train), strict=True)
    images, (test_images, test_labels) = np.concatenate(train_images), read(test)
    note = _missing(test.parent, len(images), len(test_images))
    return Dataset(images, np.concatenate(train_labels), test_images, test_labels, note=note)


def _missing(folder: Path, train: int, test: int) -> str:
    """Return a note on what a folder lacks of the whole data set: a part of it can be learned from, too."""
    left = [max(0, CIFAR10_BATCHES * CIFAR10_BATCH - train), max(0, CIFAR10_BATCH - test)]
    if not any(left):
        return ""
    return (
        f"cifar10: {folder} has {train:,} training and {test:,} test images; "
        f"{left[0]:,} and {left[1]:,} of the whole data set are missing"
    )


def _find_cifar10(settings: config.DataConfig) -> Path | None:
    found = _cifar10_batches(config.data_folder(settings))
    return found and found[1].parent


def _cifar10_batches(folder: Path) -> tuple[list[Path], Path, Callable[[Path], tuple[Images, Labels]]] | None:
    for (inner, train, test), read in ((_BINARY, _read_cifar_binary), (_PYTHON, _read_cifar_python)):
        for place in (folder, folder / inner, folder / "cifar10", folder / "cifar10" / inner):
            batches = [place / train.format(i + 1) for i in range(CIFAR10_BATCHES)]
            present = [batch for batch in batches if batch.is_file()]
            if present and (place / test).is_file():
                return present, place / test, read
    return None


def _read_cifar_binary(path: Path) -> tuple[Images, Labels]:
    """Read records of one label byte and 3072 image bytes."""
    raw = np.frombuffer(_read(path), np.uint8)
    if not raw.size or raw.size % 3073 or raw[::3073].max() >= CLASSES:
        raise DataError(f"{path}: not a CIFAR-10 batch in binary form")
    records = raw.reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def _read_cifar_python(path: Path) -> tuple[Images, Labels]:
    """Read a pickled dictionary of ``data`` (n, 3072) and ``labels``, without unpickling."""
    content = _read(path)
    try:
        raw, numbers = read_batch(content, 3072)
        if not numbers or not 0 <= min(numbers) <= max(numbers) < CLASSES:
            raise ValueError(f"it has labels that are not 0 to {CLASSES - 1}, or none")
    except ValueError as error:
        raise DataError(
            f"{path}: not a CIFAR-10 batch in Python form: {error}; take the binary version, {CIFAR10_ARCHIVE.url}"
        ) from None
    return np.frombuffer(raw, np.uint8).reshape(-1, 3, 32, 32), np.array(numbers, np.int64)


def _extract(archive: Path, folder: Path) -> None:
    """Unpack the batches, and nothing else, from the downloaded archive."""
    inner, train, test = _BINARY
    wanted = {train.format(i + 1) for i in range(CIFAR10_BATCHES)} | {test}
    batches: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                source = tar.extractfile(member) if name in wanted else None
                if source is not None:
                    batches[name] = source.read()
        for name in sorted(batches):  # the test batch last: without it nothing is found
            files.replace(folder / inner / name, batches[name])
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: cannot be unpacked: {error}") from None


# --- the registry ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """The shape of a data set's images (channels, height, width), how it is read, and where it is found.

    ``read`` raises DataError.
    """

    shape: tuple[int, int, int]
    read: Callable[[config.DataConfig, Progress | None], Dataset]
    find: Callable[[config.DataConfig], Path | None]


DATASETS: Mapping[str, Source] = {
    DataName.DIGITS: Source((1, 8, 8), _digits, _find_digits),
    DataName.MNIST: Source((1, 28, 28), _idx, _find_idx),
    DataName.FASHION_MNIST: Source((1, 28, 28), _idx, _find_idx),
    DataName.CIFAR10: Source((3, 32, 32), _cifar10, _find_cifar10),
}
"""All data sets."""

if DATASETS.keys() != set(DataName):
    raise AssertionError("data sets and their names differ")


# --- download -------------------------------------------------------------------------------------------------------


def download(remote: Remote, folder: Path, name: str, progress: Progress | None = None) -> Path:
    """Fetch a file into a folder, check its MD5, and only then give it its name.

    A file that is there already is kept when its MD5 is right.

    Raises DataError, which says where to put the file by hand.
    """
    target = folder / remote.name
    if target.is_file():
        if (found := _md5(_read(target))) == remote.md5:
            return target
        raise DataError(f"{name}: {target} is damaged (MD5 {found}, not {remote.md5}); delete it to fetch it again")
    by_hand = f"put {remote.name} into {folder}, or name its folder with --data-dir"
    content = bytearray()
    try:
        with urllib.request.urlopen(remote.url, timeout=TIMEOUT) as response:  # noqa: S310  (constant http(s) URLs)
            total = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(1 << 16):
                content += chunk
                if len(content) > MOST_BYTES:
                    raise ValueError(f"it sends more than {MOST_BYTES:,} bytes")
                if progress:
                    progress(remote.name, len(content), total)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{name}: not found, and {remote.url} cannot be fetched ({reason}); {by_hand}") from None
    found = _md5(content)
    if found != remote.md5:
        raise DataError(f"{name}: {remote.url} gave {len(content)} bytes with MD5 {found}, not {remote.md5}; {by_hand}")
    try:
        files.replace(target, bytes(content))
    except OSError as error:
        raise DataError(f"{name}: cannot write {target}: {error.strerror}") from None
    return target


def _md5(content: bytes | bytearray) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
