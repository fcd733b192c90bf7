"""How a topology file is read, merged and checked; and where shipped files, data and keys lie.

The only module that reads YAML and the environment.
"""

import os
import reprlib
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import ValidationError

from dslth import files
from dslth.config.names import Preset
from dslth.config.schema import (
    MOST,
    PRESETS,
    CountsPartition,
    DataConfig,
    DeviceConfig,
    ExperimentConfig,
    GraphFile,
    ListsPartition,
    RunConfig,
    Settings,
)
from dslth.errors import ConfigError, MissingFileError

__all__ = [
    "as_written",
    "assigned",
    "data_folder",
    "from_keys",
    "keys_folder",
    "load",
    "merge",
    "parse",
    "read",
    "read_counts",
    "read_lists",
    "shipped",
]

Of = TypeVar("Of", bound=Settings)
Folder = Literal["topologies", "peers", "experiments", "studies", "grafana"]

OTHER_DATA = ("name", "path", "label", "client", "classes", "shape", "tokens")
MOST_TEXT = 4 << 20
"""Bytes of a topology file, a profile, a counts table: enough for the edges of a graph with 200,000 links."""
MOST_VALUES = 1_000_000
"""Of a YAML file; what an alias stands for counts each time."""


def shipped(folder: Folder) -> Path:
    """Return the folder of the files that come with dslth, in an installed wheel or a checkout."""
    installed = Path(__file__).parents[1] / "shipped" / folder
    return installed if installed.is_dir() else Path(__file__).parents[3] / folder


def data_folder(config: DataConfig) -> Path:
    """Return the folder for data sets: the setting, else ``DSLTH_DATA_DIR``, else the user's cache folder.

    Raises ConfigError if that lies in the home folder of a user without one, as in some containers.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(config.folder or os.environ.get("DSLTH_DATA_DIR") or f"{cache}/dslth")
    try:
        return folder.expanduser()
    except RuntimeError:
        raise ConfigError(
            f"data: {folder} is in an unknown home folder; name a folder with --data-dir or DSLTH_DATA_DIR"
        ) from None


def keys_folder(path: Path | str) -> Path:
    """Return where a topology file's keys lie unless it says so: beside it, or for a shipped file in this folder."""
    file = _find(Path(path), "topologies", "topology")
    return (file.parent if file == Path(path) else Path()).resolve() / f"{file.stem}.keys"


def load(path: Path | str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a topology file, given by its path or by the name of a shipped one.

    ``overrides`` are nested keys that win over the file's. Paths in the topology are relative to it; a counts table
    and device profiles are read into the result, so that it needs no other file.

    Raises MissingFileError and ConfigError, each naming the file and the key.
    """
    file = _find(Path(path), "topologies", "topology")
    run = _complete(merge(_read_yaml(file, RunConfig), overrides or {}), file)
    if run.network is not None:
        keys = keys_folder(path) if run.network.keys is None else (file.parent / run.network.keys).resolve()
        run = run.model_copy(update={"network": run.network.model_copy(update={"keys": str(keys)})})
    return _standing_alone(run, file.parent)


def as_written(path: Path | str) -> dict[str, Any]:
    """Return the keys of a topology file as they stand there, unchecked: paths in it are still relative."""
    return _read_yaml(_find(Path(path), "topologies", "topology"), RunConfig)


def from_keys(keys: Mapping[str, Any], folder: Path = Path()) -> RunConfig:
    """Return the settings of a topology file with such keys in ``folder``; raises MissingFileError and ConfigError."""
    place = folder / "settings"
    return _standing_alone(_complete(merge(keys, {}), place), folder)


def assigned(text: str) -> tuple[tuple[str, ...], list[Any]]:
    """Read ``KEY=VALUE`` or ``KEY=VALUE,VALUE...``: a dotted key of a topology file, and values as YAML has them.

    A key of the ``experiment`` section may be named without it. Raises ConfigError.
    """
    name, sign, values = text.partition("=")
    keys = tuple(name.strip().split("."))
    if not sign or not all(keys):
        raise ConfigError(f"--set {text[:80]!r}: expected KEY=VALUE, as in algorithm.lr=0.3")
    try:
        found = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        found = None
    if not isinstance(found, list) or not found:
        raise ConfigError(f"--set {text[:80]!r}: expected a value as in a topology file, or several with commas")
    inside = keys[0] in ExperimentConfig.model_fields and keys[0] not in RunConfig.model_fields
    return (("experiment", *keys) if inside else keys), found


def parse(text: str, name: str) -> RunConfig:
    """Read the text of a topology file that names no other files; raises ConfigError, which begins with ``name``."""
    return _complete(_parse_yaml(text, Path(name), RunConfig), Path(name))


def _complete(raw: dict[str, Any], file: Path) -> RunConfig:
    """Check what a file says, on top of its preset and its peers' profiles."""
    experiment = raw.setdefault("experiment", {})
    if isinstance(experiment, dict):
        preset = experiment.get("preset", Preset.SIGNED)
        if preset in list(Preset):
            raw["experiment"] = merge(PRESETS[Preset(preset)], experiment)
    if isinstance(raw.get("peers"), dict):
        raw["peers"] = {key: _with_profile(key, entry, file) for key, entry in raw["peers"].items()}
    return _validate(raw, file, RunConfig)


def _standing_alone(run: RunConfig, folder: Path) -> RunConfig:
    if isinstance(run.graph, GraphFile):
        graph = run.graph.model_copy(update={"file": str(folder / run.graph.file)})
        run = run.model_copy(update={"graph": graph})
    data = run.experiment.data
    if data.path is not None:
        data = data.model_copy(update={"path": os.path.abspath(folder / data.path)})
    partition = data.partition
    if isinstance(partition, CountsPartition | ListsPartition):
        if (partition.file is None) == (partition.table is None):
            raise ConfigError("experiment.data.partition: give either 'file' or 'table', or --partition")
        if partition.file is not None:
            read = read_counts if isinstance(partition, CountsPartition) else read_lists
            partition = partition.model_copy(update={"file": None, "table": read(folder / partition.file)})
            data = data.model_copy(update={"partition": partition})
    model = run.experiment.model
    file, _, factory = model.name.rpartition(":")
    if file.endswith(".py"):
        model = model.model_copy(update={"name": f"{os.path.abspath(folder / file)}:{factory}"})
    return run.model_copy(update={"experiment": run.experiment.model_copy(update={"data": data, "model": model})})


def read(path: Path | str, folder: Folder, what: str, of: type[Of]) -> Of:
    """Read a file of other settings than a topology's: by its path, or by the name of one shipped in ``folder``.

    ``what`` it is goes into errors. Raises MissingFileError and ConfigError, each naming the file and the key.
    """
    file = _find(Path(path), folder, what)
    return _validate(_read_yaml(file, of), file, of)


def read_counts(path: Path) -> tuple[tuple[int, ...], ...]:
    """Read a counts table: whitespace-separated integers, a row per peer, a column per class."""
    rows = _rows(path, "a counts table")
    for number, row in rows.items():
        if len(row) != len(next(iter(rows.values()))):
            raise ConfigError(f"{path}:{number}: rows must be equally long")
    return tuple(rows.values())


def read_lists(path: Path) -> tuple[tuple[int, ...], ...]:
    """Read lists of samples: whitespace-separated integers, a line per peer."""
    return tuple(_rows(path, "a file of lists").values())


def _rows(path: Path, what: str) -> dict[int, tuple[int, ...]]:
    """Return the lines that are not empty, by line number."""
    rows: dict[int, tuple[int, ...]] = {}
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        try:
            row = tuple(int(word) for word in line.split())
        except ValueError:
            raise ConfigError(f"{path}:{number}: {what} holds whole numbers only") from None
        if not all(0 <= value <= MOST for value in row):
            raise ConfigError(f"{path}:{number}: numbers must be from 0 to {MOST}")
        if row:
            rows[number] = row
    if not rows:
        raise ConfigError(f"{path}: {what} with no line of numbers")
    return rows


def _with_profile(peer: Any, entry: Any, topology: Path) -> Any:
    if not isinstance(entry, dict) or "profile" not in entry:
        return entry
    name = entry["profile"]
    if not isinstance(name, str):
        raise ConfigError(f"{topology}: peers.{_word(peer)}.profile: expected a name or a path, got {_shown(name)}")
    beside = topology.parent / name
    file = beside if os.path.isfile(beside) else _find(Path(name), "peers", "device profile")
    profile = _read_yaml(file, DeviceConfig)
    try:
        DeviceConfig.model_validate(profile)
    except ValidationError as error:
        raise ConfigError(f"{file}: {_first(error, profile)}") from None
    own = {key: value for key, value in entry.items() if key != "profile"}
    return {"kind": file.stem, **profile, **own}


def _find(path: Path, folder: Folder, what: str) -> Path:
    candidates = [path, shipped(folder) / path]
    if not path.suffix:
        candidates.append(shipped(folder) / f"{path}.yaml")
    for candidate in candidates:
        if os.path.isfile(candidate):  # False for names that no file can have; Path.is_file raises
            return candidate
    known = ", ".join(sorted(file.stem for file in shipped(folder).glob("*.yaml")))
    raise MissingFileError(f"no {what} file {str(path)!r}; the ones that come with dslth: {known}")


def _read_text(path: Path) -> str:
    try:
        return files.read(path, MOST_TEXT).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise MissingFileError(f"cannot read {path}: {reason}") from None


def _read_yaml(path: Path, of: type[Settings]) -> dict[str, Any]:
    """Read keys and values. A file with none of the keys of ``of`` may be private: no error shows what it holds."""
    return _parse_yaml(_read_text(path), path, of)


def _parse_yaml(text: str, path: Path, of: type[Settings]) -> dict[str, Any]:
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        bounded = node is None or _values(node, {}) <= MOST_VALUES
        raw = yaml.constructor.SafeConstructor().construct_document(node) if node and bounded else None
    except Exception as error:  # PyYAML raises another kind for each odd value: no such date, nesting too deep ...
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ConfigError(f"{path}{line}: not YAML: {' '.join(problem.split())}") from None
    if not bounded:
        raise ConfigError(f"{path}: holds more than {MOST_VALUES:,} values, or itself; use fewer aliases")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, got {type(raw).__name__}")
    if raw and not raw.keys() & of.model_fields.keys():
        raise ConfigError(f"{path}: has none of the keys {', '.join(of.model_fields)}; is it the right file?")
    return raw


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values below a node, following none twice; a node that holds itself counts as too many."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = chain.from_iterable(below) if isinstance(node, yaml.MappingNode) else below
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``over`` into ``base`` key by key, but a mapping of another ``kind`` replaces the one in ``base``.

    Where ``over`` has a mapping and ``base`` a word, the word stays: validation says that it should be a mapping.
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key, {})
        if key == "data" and isinstance(value, dict) and isinstance(below, dict) and {"name", "path"} & value.keys():
            below = {k: v for k, v in below.items() if k not in OTHER_DATA}  # that tell of other data
        if key == "density" or not isinstance(value, dict):
            merged[key] = value
        elif isinstance(below, dict):
            same_kind = value.get("kind") in (None, below.get("kind"))
            merged[key] = merge(below, value) if same_kind else value
    return merged


def _validate(raw: Mapping[str, Any], file: Path, of: type[Of]) -> Of:
    try:
        return of.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{file}: {_first(error, raw)}") from None


def _first(error: ValidationError, raw: Any) -> str:
    """Return the first error of a validation as one line, with its key."""
    first = error.errors()[0]
    key = ".".join(_keys(first["loc"], raw, last=first["type"] == "missing")) or "the file"
    if first["type"] == "extra_forbidden":
        text = "unknown key"
    elif first["type"] == "missing":
        text = "missing"
    else:
        message = f"{' '.join(first['msg'].removeprefix('Value error, ').split()):.300}"
        text = f"{message[0].lower()}{message[1:]}, got {_shown(first['input'])}"
    more = error.error_count() - 1
    return f"{key}: {text}" + (f" (and {more} more)" if more else "")


def _shown(value: Any) -> str:
    """Write a value in at most 60 characters, even one that holds itself or a number of a million digits."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 60
    try:
        return f"{shown.repr(value):.60}"
    except ValueError:
        return "a number of too many digits"


def _word(key: Any) -> str:
    """Write a key as it is, unless that would break a line or fill it."""
    word = str(key)
    return word if word.isprintable() and len(word) <= 60 else _shown(key)


def _keys(location: tuple[int | str, ...], raw: Any, *, last: bool) -> Iterator[str]:
    """Yield the parts of a validation's location that are keys of the file, not names of the alternatives tried."""
    for number, part in enumerate(location):
        below = dict(enumerate(raw)) if isinstance(raw, list | tuple) else raw
        if isinstance(below, dict) and (part in below or (last and number == len(location) - 1)):
            yield _word(part)
            raw = below.get(part)
