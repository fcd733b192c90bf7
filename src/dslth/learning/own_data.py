"""Own data: arrays, tables and folders of images become a data set with numbered classes and standardised features.

A file's test part is its own (arrays ``x_test`` and ``y_test``, a ``test`` file or folder beside ``train``), or else
every fifth sample of each client and class.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dslth.config import MOST_CLASSES, MOST_NUMBERS, DataConfig, data_folder, plugins
from dslth.errors import DataError, DslthError
from dslth.learning.code import told
from dslth.learning.dataset import Dataset, Labels, Values, standardised
from dslth.learning.images import read_images, stacked

__all__ = ["columns", "read"]

MOST_BYTES = 1 << 34
"""Of a file of arrays, unpacked."""
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Part:
    """Samples as a file has them: (n, ...), the label of each, and the client of each if the file says that."""

    x: NDArray[Any]
    y: NDArray[Any]
    clients: NDArray[Any] | None = None

    def __getitem__(self, chosen: NDArray[np.bool_]) -> "Part":
        clients = None if self.clients is None else self.clients[chosen]
        return Part(self.x[chosen], self.y[chosen], clients)


def read(settings: DataConfig) -> Dataset:
    """Read the data at ``data.path``.

    Raises DataError, or DslthError where a package is missing that reads such a file.
    """
    path = Path(settings.place)
    train, test = _parts(path, settings) if settings.path is not None else _plugin(settings)
    if test is None:
        fifth = _fifth(train)
        train, test = train[~fifth], train[fifth]
    if not len(train.y) or not len(test.y):
        raise DataError(
            f"{path}: {len(train.y)} training and {len(test.y)} test samples; give more of them (every fifth is for "
            "testing unless there is a test part)"
        )
    if train.x.shape[1:] != test.x.shape[1:]:
        raise DataError(f"{path}: training samples have the shape {train.x.shape[1:]}, test samples {test.x.shape[1:]}")
    labels, names, classes = _numbered(path, settings, np.concatenate([train.y, test.y]))
    xs, mean, deviation = _numbers(path, settings, [_shaped(path, settings, part.x) for part in (train, test)])
    clients = _clients(path, [train, test]) if train.clients is not None and test.clients is not None else (None, None)
    return Dataset(
        *(xs[0], labels[: len(train.y)], xs[1], labels[len(train.y) :], classes),
        names=names, mean=mean, deviation=deviation, train_clients=clients[0], test_clients=clients[1],
    ).with_digest()  # fmt: skip


def _fifth(part: Part) -> NDArray[np.bool_]:
    """Mark every fifth sample in the order of clients, then classes: all are tested alike, however a file is sorted."""
    keys = [_ranks(part.y), *([] if part.clients is None else [_ranks(part.clients)])]
    chosen = np.zeros(len(part.y), bool)
    chosen[np.lexsort(keys)[4::5]] = True
    return chosen


def _ranks(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the place of each value among all that there are, in sorted order."""
    _, ranks = np.unique(values.astype(str) if values.dtype == object else values, return_inverse=True)
    return ranks.astype(np.int64)


def _plugin(settings: DataConfig) -> tuple[Part, Part | None]:
    """Call a plugin with the data folder: it returns arrays by the names that they have in an .npz file."""
    read = plugins.loaded("datasets", settings.name)
    try:
        given = read(data_folder(settings))
    except Exception as error:
        raise DataError(f"data set {settings.name} failed: {told(error)}") from error
    if not isinstance(given, Mapping):
        raise DataError(f"data set {settings.name} returned a {type(given).__name__}; expected x, y and so on, by name")
    return _named_arrays(settings.name, {str(name): np.asarray(array) for name, array in given.items()})


def _parts(path: Path, settings: DataConfig) -> tuple[Part, Part | None]:
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
            return _hugging_face(path, settings)
        inside = {name: _one_of(path, name) for name in ("train", "test")}
        if inside["train"] is None:
            return _folder(path, settings), None
        train, test = _file(inside["train"], settings), inside["test"]
        return train[0], train[1] if test is None else _file(test, settings)[0]
    return _file(path, settings)


def _one_of(folder: Path, name: str) -> Path | None:
    """Find the folder or the file of a part."""
    places = [folder / name, *(folder / f"{name}{suffix}" for suffix in _READERS)]
    return next((place for place in places if place.exists()), None)


def _file(path: Path, settings: DataConfig) -> tuple[Part, Part | None]:
    if path.is_dir():
        return _folder(path, settings), None
    if not path.is_file():
        raise DataError(f"data.path: there is no {path}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: expected one of {', '.join(_READERS)}, or a folder of images")
    return reader(path, settings)


# --- what there is to read ------------------------------------------------------------------------------------------


def _arrays(path: Path, settings: DataConfig) -> tuple[Part, Part | None]:
    """Read ``x``, ``y`` and, if there are any, ``x_test``, ``y_test``, ``client``, ``client_test`` of an .npz file."""
    try:
        with zipfile.ZipFile(path) as packed:
            if (size := sum(member.file_size for member in packed.infolist())) > MOST_BYTES:
                raise ValueError(f"it would unpack to {size:,} bytes")
        with np.load(path, allow_pickle=False) as file:
            names = ("x", "y", "x_test", "y_test", "client", "client_test")
            held = {name: file[name] for name in names if name in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    return _named_arrays(str(path), held)


def _named_arrays(path: str, held: Mapping[str, NDArray[Any]]) -> tuple[Part, Part | None]:
    parts = []
    for end in ("", "_test"):
        x, y, clients = (held.get(name + end) for name in ("x", "y", "client"))
        if x is None and y is None and end:
            break
        if (
            x is None
            or y is None
            or x.ndim < 2
            or y.shape != x.shape[:1]
            or (clients is not None and len(clients) != len(y))
        ):
            raise DataError(f"{path}: expected x{end} (n, ...) and y{end} (n,), and client{end} (n,) if any")
        parts.append(Part(x, y, clients))
    return parts[0], parts[1] if len(parts) > 1 else None


def _table(path: Path, settings: DataConfig) -> tuple[Part, None]:
    """Read a table of a row per sample: a column of labels, one of clients if it is named, and columns of features."""
    try:
        import pandas as pd
    except ImportError:
        raise DslthError("to read tables takes pandas: pip install 'dslth[tables]'") from None
    try:
        table = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pandas' and pyarrow's errors are ValueErrors
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    for column in filter(None, (settings.label, settings.client)):
        if column not in table.columns:
            shown = ", ".join(map(str, table.columns[:10])) + (" ..." if len(table.columns) > 10 else "")
            raise DataError(f"{path}: has no column {column!r}; name it with data.label or data.client; it has {shown}")
    features = [column for column in table.columns if column not in (settings.label, settings.client)]
    clients = None if settings.client is None else table[settings.client].to_numpy()
    return Part(columns(str(path), table[features]), table[settings.label].to_numpy(), clients), None


def _hugging_face(path: Path, settings: DataConfig) -> tuple[Part, Part | None]:
    """Read a folder that ``save_to_disk`` of Hugging Face's ``datasets`` made, with its test part if it has one."""
    try:
        import datasets
    except ImportError:
        raise DslthError("to read Hugging Face's folders takes datasets: pip install 'dslth[datasets]'") from None
    try:
        held = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder: the library raises whatever comes
        raise DataError(f"{path}: cannot be read: {told(error)}") from None
    if isinstance(held, datasets.Dataset):
        return _columns_of(path, settings, held), None
    if "train" not in held:
        raise DataError(f"{path}: has no part 'train', only {', '.join(held)}")
    test = next((held[name] for name in ("test", "validation") if name in held), None)
    return _columns_of(path, settings, held["train"]), None if test is None else _columns_of(path, settings, test)


def _columns_of(path: Path, settings: DataConfig, held: Any) -> Part:
    """Take the label, the client and the features of a Hugging Face data set; one column of images becomes bytes."""
    import datasets

    for column in filter(None, (settings.label, settings.client)):
        if column not in held.column_names:
            there = ", ".join(held.column_names[:10])
            raise DataError(f"{path}: has no column {column!r}; name it with data.label or data.client; it has {there}")
    kinds = held.features
    label = held.with_format("numpy")[settings.label][:]
    if isinstance(kinds[settings.label], datasets.ClassLabel):
        label = np.array(kinds[settings.label].names)[label]
    features = [column for column in held.column_names if column not in (settings.label, settings.client)]
    images = [column for column in features if isinstance(kinds[column], datasets.Image)]
    if images:
        x = stacked(held[images[0]], settings.shape, path)
    else:
        x = columns(str(path), held.select_columns(features).to_pandas())
    clients = None if settings.client is None else np.asarray(held[settings.client][:])
    return Part(x, np.asarray(label), clients)


def columns(path: str, table: Any) -> NDArray[Any]:
    """Return a table's columns of numbers side by side, or one column of lists as long as each other.

    Raises DataError, which begins with ``path``.
    """
    if not len(table.columns) or not len(table):
        raise DataError(f"{path}: has {len(table)} rows and {len(table.columns)} columns of features")
    if len(table.columns) == 1 and table.iloc[:, 0].dtype == object:
        try:
            return np.array([np.asarray(value) for value in table.iloc[:, 0]])
        except ValueError:
            raise DataError(
                f"{path}: the lists in {table.columns[0]!r} are not equally long; pad or cut them"
            ) from None
    for column, kind in table.dtypes.items():
        if kind.kind not in "biuf":
            raise DataError(f"{path}: column {column!r} holds no numbers ({kind}); encode it, or leave it out")
    values: NDArray[Any] = table.to_numpy()
    return values if values.dtype != object else values.astype(np.float64)


def _folder(path: Path, settings: DataConfig) -> Part:
    """Read a folder of images: a folder for each class, named after it."""
    found = sorted(
        (folder.name, file)
        for folder in path.iterdir() if folder.is_dir()
        for file in folder.iterdir() if file.suffix.lower() in IMAGES
    )  # fmt: skip
    if not found:
        raise DataError(
            f"{path}: expected a folder of images for each class, or a train and a test part: train.npz, train.csv, "
            "train.parquet, or folders train and test of such folders"
        )
    images = read_images([file for _, file in found], settings.shape)
    return Part(images, np.array([name for name, _ in found]))


_READERS: dict[str, Callable[[Path, DataConfig], tuple[Part, Part | None]]] = {
    ".npz": _arrays,
    ".csv": _table,
    ".parquet": _table,
}

# --- what becomes of it ---------------------------------------------------------------------------------------------


def _shaped(path: Path, settings: DataConfig, x: NDArray[Any]) -> NDArray[Any]:
    if prod(x.shape[1:]) > MOST_NUMBERS:
        raise DataError(f"{path}: a sample has {prod(x.shape[1:]):,} numbers; the most is {MOST_NUMBERS:,}")
    if settings.shape is None or x.shape[1:] == settings.shape:
        return x
    if prod(x.shape[1:]) != prod(settings.shape):
        raise DataError(f"{path}: a sample has {prod(x.shape[1:])} numbers; data.shape asks for {settings.shape}")
    return x.reshape(-1, *settings.shape)


def _numbers(
    path: Path, settings: DataConfig, xs: list[NDArray[Any]]
) -> tuple[list[Values], tuple[float, ...], tuple[float, ...]]:
    """Return samples as a network is shown them; features are standardised by those of the training samples."""
    if any(x.dtype.kind not in "biuf" for x in xs):
        raise DataError(f"{path}: samples hold {xs[0].dtype}; expected numbers")
    if settings.tokens:
        if any(x.dtype.kind not in "iu" or x.min() < 0 for x in xs):
            raise DataError(f"{path}: tokens must be whole numbers from 0 on")
        return [np.ascontiguousarray(x, np.int64) for x in xs], (), ()
    if all(x.dtype == np.uint8 for x in xs):
        return [np.ascontiguousarray(x) for x in xs], (), ()
    xs = [x.astype(np.float32).astype(np.float64) for x in xs]  # as exact as a network sees them
    if not all(np.isfinite(x).all() for x in xs):
        raise DataError(f"{path}: a feature is missing or infinite; fill it in, or leave out the sample")
    others = (0, *range(2, xs[0].ndim))
    # six digits: the same on all machines, whatever the order in which they add up
    mean, deviation = (tuple(float(f"{v:.6g}") for v in f(xs[0], axis=others)) for f in (np.mean, np.std))
    deviation = tuple(d or 1.0 for d in deviation)
    return [standardised(x, mean, deviation) for x in xs], mean, deviation


def _numbered(path: Path, settings: DataConfig, y: NDArray[Any]) -> tuple[Labels, tuple[str, ...], int]:
    """Return labels as numbers, the classes' names if they are not just numbers, and how many classes there are."""
    y = _whole_or_words(path, y)
    names: tuple[str, ...] = ()
    if isinstance(settings.classes, int):
        classes, numbers = settings.classes, _counted(path, y, settings.classes)
    elif settings.classes is not None:
        names = settings.classes
        classes, numbers = len(names), _named(path, y, names)
    else:
        known = np.unique(y)
        classes, numbers = len(known), np.searchsorted(known, y)
        if known.dtype.kind not in "iu" or not np.array_equal(known, np.arange(classes)):
            names = tuple(map(str, known.tolist()))
    if not 2 <= classes <= MOST_CLASSES:
        raise DataError(f"{path}: {classes:,} classes; expected 2 to {MOST_CLASSES:,}; is data.label the right column?")
    return np.ascontiguousarray(numbers, np.int64), names, classes


def _whole_or_words(path: Path, y: NDArray[Any]) -> NDArray[Any]:
    """Return labels as int64 or as strings."""
    if y.dtype.kind in "iub" or (y.dtype.kind == "f" and np.array_equal(y, np.round(y))):
        return y.astype(np.int64)
    words = y.tolist()
    if not all(isinstance(word, str) for word in words):
        raise DataError(f"{path}: a label is missing, or is no class; labels must be whole numbers or words")
    return np.array(words)


def _counted(path: Path, y: NDArray[Any], classes: int) -> Labels:
    if y.dtype.kind not in "iu" and all(word.isdigit() for word in np.unique(y).tolist()):
        y = y.astype(np.int64)  # folders have names
    strange = [label for label in np.unique(y).tolist() if isinstance(label, str) or not 0 <= label < classes]
    if strange:
        raise DataError(f"{path}: there is a label {strange[0]!r}; with classes: {classes} they are 0 to {classes - 1}")
    return y


def _named(path: Path, y: NDArray[Any], names: Sequence[str]) -> Labels:
    place = {name: number for number, name in enumerate(names)}
    strange = [label for label in map(str, np.unique(y).tolist()) if label not in place]
    if strange:
        raise DataError(f"{path}: there is a label {strange[0]!r}, which is not among data.classes")
    return np.array([place[str(label)] for label in y.tolist()], np.int64)


def _clients(path: Path, parts: list[Part]) -> tuple[Labels, Labels]:
    """Return the clients as numbers, in sorted order."""
    given = [np.asarray(part.clients) for part in parts]
    both = np.concatenate(given)
    numbers, train = _ranks(both), len(given[0])
    return numbers[:train], numbers[train:]
