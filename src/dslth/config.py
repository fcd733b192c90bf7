"""What a topology file may say: the one reader of YAML and of the environment.

A file has four parts: ``graph`` (who talks to whom), ``network`` (addresses; optional), ``experiment`` (everything
that all peers must agree on) and ``peers`` (what differs by peer; optional). Unknown keys are errors.
"""

import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from math import exp
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dslth import files
from dslth.errors import ConfigError, MissingFileError, UnknownPeerError

__all__ = [
    "PRESETS",
    "AlgorithmConfig",
    "DataConfig",
    "DeviceConfig",
    "ExperimentConfig",
    "GraphConfig",
    "ModelConfig",
    "NetworkConfig",
    "PartitionConfig",
    "RunConfig",
    "data_folder",
    "full_address",
    "identity",
    "keys_folder",
    "load",
    "read_counts",
    "shipped",
]

MOST = 2**31 - 1
MOST_TEXT = 4 << 20
"""Bytes of a topology file, a profile, a counts table; a graph of 200,000 links, written out, has as many."""
MOST_VALUES = 1_000_000
"""Of a YAML file, with what an alias stands for counted each time."""
Positive = Annotated[int, Field(ge=1, le=MOST, strict=True)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Whole = Annotated[int, Field(ge=-MOST, le=MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**64, strict=True)]
Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


def _text(value: str) -> str:
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("holds characters that no text file or file name can hold")
    return value


Text = Annotated[str, AfterValidator(_text)]


class Settings(BaseModel):
    """Base of all settings: frozen, and a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- graph ----------------------------------------------------------------------------------------------------------


class Ring(Settings):
    """Each peer linked to the next, the last to the first."""

    kind: Literal["ring"]
    peers: Annotated[int, Field(ge=3, le=MOST)]


class Line(Settings):
    """Each peer linked to the next."""

    kind: Literal["line"]
    peers: Annotated[int, Field(ge=2, le=MOST)]


class Star(Settings):
    """Peer 0 linked to all others."""

    kind: Literal["star"]
    peers: Annotated[int, Field(ge=2, le=MOST)]


class Full(Settings):
    """Each peer linked to every other: a mesh."""

    kind: Literal["full"]
    peers: Annotated[int, Field(ge=2, le=MOST)]


class Grid(Settings):
    """Rows times columns; peer ``row * columns + column`` is linked to those beside, above and below."""

    kind: Literal["grid"]
    rows: Positive
    columns: Positive


class Torus(Settings):
    """A grid whose opposite borders are linked."""

    kind: Literal["torus"]
    rows: Annotated[int, Field(ge=3, le=MOST)]
    columns: Annotated[int, Field(ge=3, le=MOST)]


class ErdosRenyi(Settings):
    """Each pair linked with probability ``p``; drawn again (with derived seeds) until in one piece."""

    kind: Literal["erdos-renyi"]
    peers: Annotated[int, Field(ge=2, le=MOST)]
    p: Share
    seed: Seed | None = None


class SmallWorld(Settings):
    """Watts-Strogatz: a ring with ``neighbours`` links a peer, each rewired with probability ``p``."""

    kind: Literal["small-world"]
    peers: Annotated[int, Field(ge=3, le=MOST)]
    neighbours: Annotated[int, Field(ge=2, le=MOST)]
    p: Probability
    seed: Seed | None = None


class RandomRegular(Settings):
    """Every peer has ``degree`` links, drawn at random."""

    kind: Literal["random-regular"]
    peers: Annotated[int, Field(ge=2, le=MOST)]
    degree: Positive
    seed: Seed | None = None


class Edges(Settings):
    """The links themselves, as pairs of ids 0 .. peers-1."""

    kind: Literal["edges"]
    peers: Annotated[int, Field(ge=2, le=MOST)]
    edges: tuple[tuple[Whole, Whole], ...]


class GraphFile(Settings):
    """A file made elsewhere: 0/1 adjacency matrix, edge list, or GraphML; relative to the topology file."""

    kind: Literal["file"]
    file: Text


GraphConfig = Annotated[
    Ring | Line | Star | Full | Grid | Torus | ErdosRenyi | SmallWorld | RandomRegular | Edges | GraphFile,
    Field(discriminator="kind"),
]

# --- network --------------------------------------------------------------------------------------------------------


def _host(host: str) -> str:
    """Check the name or number of a host that others connect to; ``{id}`` in it stands for a peer."""
    if host.startswith("[") and host.endswith("]"):
        IPv6Address(host[1:-1])
    elif re.fullmatch(r"[\d.]+", host):
        IPv4Address(host)
    elif not re.fullmatch(r"([A-Za-z0-9_.-]|\{id\})+", host):
        raise ValueError("expected the name or number of a host that neighbours can connect to")
    return host


def full_address(address: str) -> str:
    """Check an address and give it in full, as in ``tcp://10.0.0.7:47100``; ValueError where it is none."""
    scheme, _, rest = address.rpartition("://")
    host, _, port = rest.rpartition(":")
    if scheme not in ("", "tcp"):
        raise ValueError(f"peers talk over tcp, not {scheme}; write HOST:PORT")
    if not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65535) or "{" in host:
        raise ValueError("expected HOST:PORT, with a port from 1 to 65535")
    return f"tcp://{_host(host)}:{int(port)}"


Port = Annotated[int, Field(ge=1, le=65535)]


class NetworkConfig(Settings):
    """Where peers listen: peer ``i`` at ``host:base_port + i``, at ``host:port``, or at ``addresses[i]``.

    ``host`` may hold ``{id}``, as in ``peer-{id}``, and must where all peers have the same ``port``. ``security``:
    ``curve`` encrypts and asks everybody for a key, ``none`` does not, ``auto`` does wherever an address is not
    loopback. ``keys`` is the folder of key pairs; without one, ``NAME.keys`` beside the file ``NAME.yaml``.
    """

    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    base_port: Port = 47100
    port: Port | None = None
    addresses: tuple[Annotated[str, AfterValidator(full_address)], ...] | None = None
    security: Literal["auto", "curve", "none"] = "auto"
    keys: Text | None = None

    @model_validator(mode="after")
    def _an_address_each(self) -> "NetworkConfig":
        if self.addresses is None and self.port is not None and "{id}" not in self.host:
            raise ValueError(
                f"all peers would be at {self.host}:{self.port}; give base_port in place of port, or a host with {{id}}"
            )
        first: dict[str, int] = {}
        for peer, address in enumerate(self.addresses or ()):
            if first.setdefault(address, peer) != peer:
                raise ValueError(f"addresses: peers {first[address]} and {peer} are both at {address}")
        return self

    def address(self, peer: int) -> str:
        """Return the ZeroMQ address of a peer, e.g. ``tcp://127.0.0.1:47103``."""
        if self.addresses is not None:
            if peer >= len(self.addresses):
                raise ConfigError(f"network.addresses: {len(self.addresses)} addresses, but there is a peer {peer}")
            return self.addresses[peer]
        port = self.port if self.port is not None else self.base_port + peer
        if port > 65535:
            raise ConfigError(f"network.base_port: {self.base_port} leaves no port for peer {peer}")
        return f"tcp://{self.host.replace('{id}', str(peer))}:{port}"


# --- experiment -----------------------------------------------------------------------------------------------------


class ByKind(Settings):
    """One density for convolutions, one for linear layers."""

    conv: Share
    linear: Share


Density = Share | ByKind | tuple[Share, ...]
"""Share of a layer's weights that a mask keeps: for all layers, by kind of layer, or layer by layer."""


class IidPartition(Settings):
    """Everybody draws from all classes alike."""

    kind: Literal["iid"]
    fraction: Share = 1.0


class ClassesPartition(Settings):
    """Each peer has ``classes_per_peer`` of the classes, dealt so that each class has equally many owners."""

    kind: Literal["classes"]
    classes_per_peer: Positive
    fraction: Share = 1.0


class DirichletPartition(Settings):
    """Each class is shared out in Dirichlet(alpha) proportions: the smaller alpha, the less alike the peers."""

    kind: Literal["dirichlet"]
    alpha: Annotated[float, Field(gt=0)]
    fraction: Share = 1.0


class CountsPartition(Settings):
    """A table of training samples, a row a peer, a column a class.

    A table that asks for more than the data set holds is scaled down as a whole, each count truncated.
    """

    kind: Literal["counts"]
    file: Text | None = None
    table: tuple[tuple[Count, ...], ...] | None = None
    fraction: Share = 1.0

    @model_validator(mode="after")
    def _rectangular(self) -> "CountsPartition":
        if self.table is not None and (not self.table or len({len(row) for row in self.table}) > 1):
            raise ValueError("a counts table has one row a peer, all equally long")
        return self


PartitionConfig = Annotated[
    IidPartition | ClassesPartition | DirichletPartition | CountsPartition, Field(discriminator="kind")
]


class DataConfig(Settings):
    """Which data, who gets what, and how many test samples are looked at (at most, per peer and test set)."""

    name: Literal["digits", "mnist", "fashion-mnist", "cifar10"] = "digits"
    partition: PartitionConfig = ClassesPartition(kind="classes", classes_per_peer=4)
    test_samples: Positive = 500
    folder: Text | None = None


class ModelConfig(Settings):
    """A network of the zoo, and how its frozen weights are drawn."""

    name: Literal["mlp", "cnn", "resnet8"] = "cnn"
    init: Literal["default", "signed"] = "signed"
    norm: Literal["local-response", "group"] = "group"
    output_elu: bool = False


class AlgorithmConfig(Settings):
    """MCE-PL's constants, and two variants that are off at 0.

    ``min_filter_weights``: filters that keep at most so many weights are dropped (the paper's structured variant, 20).
    ``inertia``: a peer's own last mask lifts its scores too, as much as this many neighbours' means: fewer bits flip.
    ``momentum``: share of the neighbours' mean that stays from one round to the next.
    ``mean``: how neighbours' masks are averaged; all but ``plain`` defend against liars among them, see
    ``algorithm.combine``. ``epsilon``: each bit of a mask that is sent is flipped with probability
    ``1 / (1 + exp(epsilon))`` (randomised response), and the mean is freed of that bias; None: no bit is.
    """

    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    fine_tune_lr: Annotated[float, Field(ge=0)]
    local_steps: Positive = 1
    batch: Positive = 128
    density: Density
    lasso: Annotated[float, Field(ge=0)] = 0.0
    min_filter_weights: Count = 0
    scores: Literal["own", "common"] = "own"
    inertia: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mean: Literal["plain", "trimmed", "median", "similar"] = "plain"
    epsilon: Annotated[float, Field(ge=0.001, le=100)] | None = None
    exchange: bool = True

    @property
    def flip(self) -> float:
        """Probability that a bit that is sent is not the mask's."""
        return 0.0 if self.epsilon is None else 1 / (1 + exp(self.epsilon))


class ExperimentConfig(Settings):
    """What all peers of a run agree on.

    ``mode``: how a round treats those who are late. ``sync`` waits for all up to the ``deadline`` (seconds; ``none``:
    until they are back) and no more for whom missed it, until it is heard of again; ``deadline`` waits each round for
    all who are connected; ``async`` never waits and uses each neighbour's newest mask that is at most ``staleness``
    rounds older than its own. ``checkpoint_every``: rounds between two checkpoints, 0 for none; they are removed when
    the run has finished unless ``keep_checkpoints``.
    """

    preset: Literal["signed", "mce-pl"] = "signed"
    seed: Seed = 1
    rounds: Positive = 20
    data: DataConfig = DataConfig()
    model: ModelConfig
    algorithm: AlgorithmConfig
    codec: Literal["auto", "bitpack", "range", "delta", "context"] = "auto"
    mode: Literal["sync", "deadline", "async"] = "sync"
    deadline: Annotated[float, Field(gt=0)] | Literal["none"] = 60.0
    staleness: Positive = 5
    checkpoint_every: Count = 5
    keep_checkpoints: bool = False
    evaluate_every: Positive = 1


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # For accuracy: signed constants, group norm, several steps a round.
    "signed": {
        "model": {"init": "signed", "norm": "group", "output_elu": False},
        "algorithm": {
            "lr": 1.0,
            "fine_tune_lr": 1.0,
            "local_steps": 2,
            "density": {"conv": 0.5, "linear": 0.9},
            "scores": "common",
        },
    },
    # The paper's protocol, constant for constant.
    "mce-pl": {
        "model": {"init": "default", "norm": "local-response", "output_elu": True},
        "algorithm": {
            "lr": 10.0,
            "fine_tune_lr": 10.0,
            "weight_decay": 5e-4,
            "local_steps": 1,
            "density": {"conv": 0.3, "linear": 0.9},
        },
    },
}
"""Named settings that a file selects with ``experiment.preset`` and overrides key by key."""

# --- peers ----------------------------------------------------------------------------------------------------------


class DeviceConfig(Settings):
    """What kind of device a peer is: a profile under ``peers/``, or a peer's own entry; its keys win over the run's.

    ``speed`` below 1 stretches the peer's computing time by 1/speed, so that a fast machine can play a slow device.
    """

    description: Text = ""
    density: Density | None = None
    batch: Positive | None = None
    threads: Annotated[int, Field(ge=1, le=1024, strict=True)] = 1
    speed: Annotated[float, Field(ge=1e-6, le=1)] = 1.0


class PeerConfig(DeviceConfig):
    """One peer's entry. In a file, ``profile`` names a profile whose keys the entry's own win over.

    Reading puts the profile's keys here and its name into ``device``.
    """

    device: Text = "this machine"


class RunConfig(Settings):
    """A topology file, read and checked."""

    graph: GraphConfig
    network: NetworkConfig | None = None
    experiment: ExperimentConfig
    peers: dict[Whole, PeerConfig] = {}

    def device(self, peer: int) -> PeerConfig:
        """Return the settings of a peer's device."""
        return self.peers.get(peer, PeerConfig())

    def check_peers(self, n_peers: int) -> None:
        """Raise UnknownPeerError where the file speaks of a peer that the graph does not have."""
        for peer in self.peers:
            check_peer(peer, n_peers, "peers")

    def to_yaml(self) -> str:
        """Write the file back, every default spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)


def check_peer(peer: int, n_peers: int, where: str) -> None:
    """Raise UnknownPeerError unless the graph has this peer."""
    if not 0 <= peer < n_peers:
        raise UnknownPeerError(f"{where}: there is no peer {peer}; this graph has peers 0 to {n_peers - 1}")


# --- reading --------------------------------------------------------------------------------------------------------


def shipped(folder: Literal["topologies", "peers"]) -> Path:
    """Find the topology files or device profiles that come with dslth, in a checkout or an installed wheel."""
    installed = Path(__file__).parent / "shipped" / folder
    return installed if installed.is_dir() else Path(__file__).parents[2] / folder


def data_folder(config: DataConfig) -> Path:
    """Return the folder for data sets: the setting, else ``DSLTH_DATA_DIR``, else the user's cache folder.

    Raises ConfigError where that lies in the home of a user who has none, as a container's may.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(config.folder or os.environ.get("DSLTH_DATA_DIR") or f"{cache}/dslth")
    try:
        return folder.expanduser()
    except RuntimeError:
        raise ConfigError(
            f"data: {folder} is in a home folder that is not known; name a folder with --data-dir or DSLTH_DATA_DIR"
        ) from None


def keys_folder(path: Path | str) -> Path:
    """Return the folder of a topology file's keys unless it names one: beside it, or here for one that is shipped."""
    file = _find(Path(path), "topologies", "topology")
    return (file.parent if file == Path(path) else Path()).resolve() / f"{file.stem}.keys"


def load(path: Path | str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a topology file, given by path or by a name that is shipped.

    ``overrides`` are nested keys that win over the file's. Files that the topology names are found relative to it; a
    counts table and device profiles are read into the result, so that it stands alone.

    Raises MissingFileError and ConfigError, each naming the file and the key.
    """
    file = _find(Path(path), "topologies", "topology")
    raw = _merge(_read_yaml(file, RunConfig), overrides or {})
    experiment = raw.setdefault("experiment", {})
    if isinstance(experiment, dict):
        preset = experiment.get("preset", "signed")
        if isinstance(preset, str) and preset in PRESETS:
            raw["experiment"] = _merge(PRESETS[preset], experiment)
    if isinstance(raw.get("peers"), dict):
        raw["peers"] = {key: _with_profile(key, entry, file) for key, entry in raw["peers"].items()}
    run = _validate(raw, file)
    if run.network is not None:
        keys = keys_folder(path) if run.network.keys is None else (file.parent / run.network.keys).resolve()
        run = run.model_copy(update={"network": run.network.model_copy(update={"keys": str(keys)})})
    return _standing_alone(run, file.parent)


def _standing_alone(run: RunConfig, folder: Path) -> RunConfig:
    if isinstance(run.graph, GraphFile):
        graph = run.graph.model_copy(update={"file": str(folder / run.graph.file)})
        run = run.model_copy(update={"graph": graph})
    data = run.experiment.data
    partition = data.partition
    if isinstance(partition, CountsPartition):
        if (partition.file is None) == (partition.table is None):
            raise ConfigError("experiment.data.partition: give either 'file' or 'table'")
        if partition.file is not None:
            table = read_counts(folder / partition.file)
            partition = partition.model_copy(update={"file": None, "table": table})
            data = data.model_copy(update={"partition": partition})
            run = run.model_copy(update={"experiment": run.experiment.model_copy(update={"data": data})})
    return run


def read_counts(path: Path) -> tuple[tuple[int, ...], ...]:
    """Read a counts table: whitespace-separated integers, a row a peer, a column a class."""
    rows: list[tuple[int, ...]] = []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        try:
            row = tuple(int(word) for word in line.split())
        except ValueError:
            raise ConfigError(f"{path}:{number}: a counts table holds whole numbers only") from None
        if not all(0 <= count <= MOST for count in row) or (rows and row and len(row) != len(rows[0])):
            raise ConfigError(f"{path}:{number}: rows must be equally long and counts from 0 to {MOST}")
        if row:
            rows.append(row)
    if not rows:
        raise ConfigError(f"{path}: the counts table is empty")
    return tuple(rows)


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
    return {"device": file.stem, **profile, **own}


def _find(path: Path, folder: Literal["topologies", "peers"], what: str) -> Path:
    candidates = [path, shipped(folder) / path]
    if not path.suffix:
        candidates.append(shipped(folder) / f"{path}.yaml")
    for candidate in candidates:
        if os.path.isfile(candidate):  # False, where Path.is_file raises, for names that no file can have
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
    """Read keys and values; of a file with none of the keys of ``of`` nothing is told, for it is something else."""
    text = _read_text(path)
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        bounded = node is None or _values(node, {}) <= MOST_VALUES
        raw = yaml.constructor.SafeConstructor().construct_document(node) if node and bounded else None
    except Exception as error:  # PyYAML has an own kind for each odd value: a date that cannot be, nesting too deep ...
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ConfigError(f"{path}{line}: not YAML: {' '.join(problem.split())}") from None
    if not bounded:
        raise ConfigError(f"{path}: holds more than {MOST_VALUES:,} values, or itself; use fewer aliases")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, got {type(raw).__name__}")
    if raw and not raw.keys() & of.model_fields.keys():
        raise ConfigError(f"{path}: has none of the keys {', '.join(of.model_fields)}; is it the file that was meant?")
    return raw


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values below a node, without following any twice; one that holds itself counts as too many."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = chain.from_iterable(below) if isinstance(node, yaml.MappingNode) else below
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``over`` on ``base``; mappings merge key by key, but one that names another ``kind`` replaces the whole.

    Where ``over`` has a mapping and ``base`` a word, the word stays: validation says that it should be a mapping.
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key, {})
        if key == "density" or not isinstance(value, dict):
            merged[key] = value
        elif isinstance(below, dict):
            same_kind = value.get("kind") in (None, below.get("kind"))
            merged[key] = _merge(below, value) if same_kind else value
    return merged


def _validate(raw: Mapping[str, Any], file: Path) -> RunConfig:
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{file}: {_first(error, raw)}") from None


def _first(error: ValidationError, raw: Any) -> str:
    """Put the first complaint of a validation in one line, with the key it is about."""
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
    """Write a value in at most 60 characters, also one that holds itself or a number of a million digits."""
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
    """Return the parts of a validation's location that are keys of the file, not names of the alternatives tried."""
    for number, part in enumerate(location):
        below = dict(enumerate(raw)) if isinstance(raw, list | tuple) else raw
        if isinstance(below, dict) and (part in below or (last and number == len(location) - 1)):
            yield _word(part)
            raw = below.get(part)


# --- identity -------------------------------------------------------------------------------------------------------


def identity(run: RunConfig, edges: str) -> dict[str, str]:
    """Flatten all that peers of one run must share to ``{"seed": "1", "algorithm.lr": "1.0", ...}``.

    Left out is what a peer may choose for itself: rounds, where data lie, codec, deadline, staleness, checkpoints,
    evaluation, its device.
    """
    shared = run.experiment.model_dump(
        mode="json",
        exclude=dict.fromkeys(
            (
                *("preset", "rounds", "codec", "deadline", "staleness"),
                *("checkpoint_every", "keep_checkpoints", "evaluate_every"),
            ),
            True,
        )
        | {"data": {"folder": True, "test_samples": True}},
    )
    return {"topology": edges, **dict(_flatten("", shared))}


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, below in sorted(value.items()):
            yield from _flatten(f"{prefix}.{key}" if prefix else key, below)
    else:
        yield prefix, str(value)
