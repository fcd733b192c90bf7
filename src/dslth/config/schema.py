"""What a topology file may contain: its keys, their bounds and defaults, and the presets it builds on.

A file has four parts: ``graph`` (who talks to whom), ``network`` (addresses; optional), ``experiment`` (everything
that all peers must agree on) and ``peers`` (what differs by peer; optional). Unknown keys are errors.
"""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from math import exp, prod
from pathlib import PurePath
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from dslth.config import plugins
from dslth.config.names import (
    CodecName,
    DataName,
    Init,
    LinkName,
    MeanName,
    Mode,
    ModelName,
    Norm,
    Preset,
    Schedule,
    Scores,
    Security,
)
from dslth.errors import ConfigError, UnknownPeerError

__all__ = [
    "ELSEWHERE",
    "MODEL_NAME",
    "MOST",
    "MOST_CLASSES",
    "MOST_NUMBERS",
    "PRESETS",
    "AlgorithmConfig",
    "ByKind",
    "ClassesPartition",
    "ClientsPartition",
    "CountsPartition",
    "DataConfig",
    "DealtPartition",
    "Density",
    "DeviceConfig",
    "DirichletPartition",
    "DrawnPartition",
    "Edges",
    "ErdosRenyi",
    "ExperimentConfig",
    "Full",
    "GraphConfig",
    "GraphFile",
    "Grid",
    "IidPartition",
    "Inputs",
    "Line",
    "LinkConfig",
    "LinkSetting",
    "ListsPartition",
    "ModelConfig",
    "Named",
    "NetworkConfig",
    "OwnPartition",
    "PartitionConfig",
    "PeerConfig",
    "RandomRegular",
    "Ring",
    "RunConfig",
    "Settings",
    "SmallWorld",
    "Star",
    "Torus",
    "check_peer",
    "computing_device",
    "full_address",
    "identity",
]

MOST = 2**31 - 1
MOST_NUMBERS = 1 << 22
"""Of a sample: an image of 1,180 x 1,180 pixels in colours."""
MOST_CLASSES = 1 << 16
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
    """Base of all settings: frozen, and an unknown key is an error."""

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
    """Rows times columns; peer ``row * columns + column`` is linked to those beside, above and below it."""

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
    """Watts-Strogatz: a ring with ``neighbours`` links per peer, each rewired with probability ``p``."""

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
    """Check the name or IP address of a host that others connect to; ``{id}`` in it stands for a peer's id."""
    if host.startswith("[") and host.endswith("]"):
        IPv6Address(host[1:-1])
    elif re.fullmatch(r"[\d.]+", host):
        IPv4Address(host)
    elif not re.fullmatch(r"([A-Za-z0-9_.-]|\{id\})+", host):
        raise ValueError("expected a host name or IP address that neighbours can connect to")
    return host


def full_address(address: str) -> str:
    """Return a checked address in full, as in ``tcp://10.0.0.7:47100``; raises ValueError if it is not one."""
    scheme, _, rest = address.rpartition("://")
    host, _, port = rest.rpartition(":")
    if scheme not in ("", "tcp"):
        raise ValueError(f"peers talk over tcp, not {scheme}; write HOST:PORT")
    if not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65535) or "{" in host:
        raise ValueError("expected HOST:PORT, with a port from 1 to 65535")
    return f"tcp://{_host(host)}:{int(port)}"


Port = Annotated[int, Field(ge=1, le=65535)]


class LinkConfig(Settings):
    """A link between peers in virtual time; see ``transport/links.py``.

    One-way ``latency`` in seconds, ``bandwidth`` in bits per second (None: no bound), ``loss`` as a share of packets,
    ``duty`` as the share of time that a peer may be sending.
    """

    latency: Annotated[float, Field(ge=0, le=3600)] = 0.0
    bandwidth: Annotated[float, Field(ge=1)] | None = None
    loss: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    duty: Annotated[float, Field(ge=1e-6, le=1)] = 1.0


def _spelled(link: Any) -> str:
    return "figures" if isinstance(link, dict | LinkConfig) else "name"


LinkSetting = Annotated[
    Annotated[LinkName, Tag("name")] | Annotated[LinkConfig, Tag("figures")], Discriminator(_spelled)
]
"""A link by its name, or by its figures."""


class NetworkConfig(Settings):
    """Where peers listen: peer ``i`` at ``host:base_port + i``, at ``host:port``, or at ``addresses[i]``.

    ``host`` may hold ``{id}``, as in ``peer-{id}``, and must if all peers have the same ``port``. ``security``:
    ``curve`` encrypts and demands a key from everybody, ``none`` does not, ``auto`` does if an address is not loopback.
    ``keys`` is the folder of key pairs; without one, ``NAME.keys`` beside the file ``NAME.yaml``.

    ``link`` is what lies between peers in virtual time, by name or by figures; only the batched engine has such time.
    """

    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    base_port: Port = 47100
    port: Port | None = None
    addresses: tuple[Annotated[str, AfterValidator(full_address)], ...] | None = None
    security: Security = Security.AUTO
    keys: Text | None = None
    link: LinkSetting = LinkName.NONE

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
    """Every peer draws from all classes alike."""

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
    """A table of numbers of training samples, a row per peer, a column per class.

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


class DrawnPartition(Settings):
    """Each peer has ``classes_per_peer`` of the classes, and draws ``samples`` of them: other peers may have the same.

    For more peers than a data set has samples for, or as much work for each peer whatever their number.
    """

    kind: Literal["drawn"]
    classes_per_peer: Positive
    samples: Positive


class ClientsPartition(Settings):
    """Natural clients: each sample belongs to one, which the column ``data.client`` names.

    The clients in sorted order are peers 0, 1, 2 ...; more clients than peers begin at peer 0 again. Test samples
    belong to clients likewise.
    """

    kind: Literal["clients"]


class ListsPartition(Settings):
    """The training samples of each peer by their numbers: ``file`` has a line per peer, as in ``0 3 17``."""

    kind: Literal["lists"]
    file: Text | None = None
    table: tuple[tuple[Count, ...], ...] | None = None


class OwnPartition(Settings):
    """Each peer has data of its own, at a ``data.path`` with ``{id}`` in it; it learns from all of them."""

    kind: Literal["own"]


DealtPartition = IidPartition | ClassesPartition | DirichletPartition | CountsPartition
"""Partitions that give each peer a number of samples of each class."""
PartitionConfig = Annotated[
    DealtPartition | DrawnPartition | ClientsPartition | ListsPartition | OwnPartition, Field(discriminator="kind")
]


class Inputs(Settings):
    """What a network is shown, and how many classes it tells apart: of own data, in hellos and in tickets.

    ``number``: bytes (uint8), which a network gets as floats in [-1, 1], features (float32), of which it gets
    ``(feature - mean) / deviation``, or tokens (int64).
    """

    shape: tuple[Positive, ...]
    number: Literal["uint8", "float32", "int64"]
    classes: Positive
    names: tuple[Text, ...] = ()
    mean: tuple[float, ...] = ()
    deviation: tuple[Annotated[float, Field(gt=0)], ...] = ()

    @model_validator(mode="after")
    def _fitting(self) -> "Inputs":
        if prod(self.shape) > MOST_NUMBERS or self.classes > MOST_CLASSES:
            raise ValueError(f"samples of more than {MOST_NUMBERS:,} numbers, or more than {MOST_CLASSES:,} classes")
        if {len(self.mean), len(self.deviation)} not in ({0}, {self.shape[0] if self.shape else 1}):
            raise ValueError("a mean and a deviation for each feature, or none")
        if self.names and len(self.names) != self.classes:
            raise ValueError("a name for each class, or none")
        return self

    def __str__(self) -> str:
        """Say what fits together: all but the figures of the features."""
        return f"{self.number} {'x'.join(map(str, self.shape))}, {self.classes} classes {' '.join(self.names)}".strip()


class Named:
    """The type of a name: of something that dslth has, or of a plugin; with ``code`` also of own code.

    Elsewhere than here, see ``ELSEWHERE``, a plugin need not be installed.
    """

    def __init__(self, names: type[StrEnum], kind: plugins.Kind, *, code: bool = False) -> None:
        self._names, self._kind, self._code = names, kind, code

    def check(self, name: Any, info: ValidationInfo | None = None) -> Any:
        """Return the name; raises ValueError if there is nothing of that name."""
        if isinstance(name, str):
            if name in list(self._names):
                return self._names(name)
            if name in plugins.found(self._kind) or (self._code and re.fullmatch(OWN_CODE, name)):
                return name
            if info and info.context is ELSEWHERE and re.fullmatch(r"[\w.-]{1,100}", name):
                return name
        own = ", or own code as in package.module:Net or ./nets.py:Net" if self._code else ""
        raise ValueError(f"expected {', '.join([*self._names, *sorted(plugins.found(self._kind))])}{own}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_before_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        known: dict[str, Any] = {"enum": [*self._names, *sorted(plugins.found(self._kind))], "type": "string"}
        return {"anyOf": [known, {"type": "string", "pattern": OWN_CODE}]} if self._code else known


OWN_CODE = r"^[^:\0]*:[A-Za-z_]\w*$"
ELSEWHERE = {"elsewhere": True}
"""The context of validation for what was made elsewhere: it may name plugins that are not installed here."""
MODEL_NAME = Named(ModelName, "models", code=True)


class DataConfig(Settings):
    """Which data, who gets what, and how many test samples are used (at most, per peer and test set).

    ``name`` is that of a data set which dslth knows, or of a plugin; ``folder`` is where it lies, or is downloaded to.

    ``path`` is that of own data, in place of a name: a file (``.npz``, ``.csv``, ``.parquet``) or a folder (of images,
    or with a ``train`` and a ``test`` file); ``{id}`` in it stands for a peer, so that each has its own. In a table,
    ``label`` is the column of classes, and ``client`` that of the client whom a sample belongs to. ``classes``: how
    many there are, or their names; needed only where no peer sees them all. ``shape``: of one sample, such as channels,
    height and width; ``tokens``: samples are whole numbers for an embedding, not features.

    ``validation``: share of its own training samples that a peer holds out, never learns from, and is evaluated on in
    place of the test samples, which nobody looks at then: for choosing settings. It is evaluated on all of them.
    """

    name: Annotated[DataName | str, Named(DataName, "datasets")] = DataName.DIGITS
    path: Text | None = None
    label: Text = "label"
    client: Text | None = None
    classes: Positive | Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    shape: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=8)] | None = None
    tokens: bool = False
    partition: PartitionConfig = ClassesPartition(kind="classes", classes_per_peer=4)
    test_samples: Positive = 500
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    folder: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_place(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and isinstance(path := raw.get("path"), str):
            if "name" in raw:
                raise ValueError("name is that of a data set that dslth knows, path that of own data: give one of them")
            return {"partition": {"kind": "own"}} | raw if "{id}" in path else raw
        return raw

    @model_validator(mode="after")
    def _fitting(self) -> "DataConfig":
        if self.validation and self.partition.kind == "drawn":
            raise ValueError("validation needs samples that no other peer learns from: a partition that is not drawn")
        if self.each_its_own != (self.partition.kind == "own"):
            raise ValueError("a path with {id} and the partition kind 'own' go together: each peer has its own data")
        if self.partition.kind == "clients" and not self.own:
            raise ValueError("the partition kind 'clients' needs own data, which say whose each sample is")
        given = [key for key in ("classes", "shape", "tokens") if getattr(self, key)]
        if given and not self.own:
            raise ValueError(f"{given[0]} is a key of own data, which are named by path")
        if self.client and self.path is None:
            raise ValueError("client is a column of own data, which are named by path")
        return self

    @model_serializer(mode="wrap")
    def _one_place_only(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what does not count: settings of older tickets and runs stay as they were."""
        written: dict[str, Any] = write(self)
        reading = ("classes", "shape", "tokens")
        table = ("path", "label", "client", *(() if self.own else reading))
        for key in table if self.path is None else ("name", "folder"):
            written.pop(key, None)
        return written

    @property
    def title(self) -> str:
        """What people call the data: the data set's name, or that of the file or folder."""
        return self.name if self.path is None else PurePath(self.path).name

    @property
    def own(self) -> bool:
        """Whether they are the user's own, at a path or from a plugin."""
        return self.path is not None or not isinstance(self.name, DataName)

    @property
    def place(self) -> str:
        """Where they are, for messages: the path, or else the name."""
        return self.name if self.path is None else self.path

    @property
    def each_its_own(self) -> bool:
        """Whether each peer has data that no other peer sees."""
        return self.path is not None and "{id}" in self.path

    def of(self, peer: int) -> "DataConfig":
        """Return the settings with the path of a peer's own data."""
        if self.path is None:
            return self
        return self.model_copy(update={"path": self.path.replace("{id}", str(peer))})


class ModelConfig(Settings):
    """A network of the zoo, or one's own; and how its frozen weights are drawn.

    An own one is named by what makes it: a class or function of a module that Python can import, of a file beside the
    topology file, or of a plugin. It is called with the ``options`` and, if it has parameters of these names, ``shape``
    (of one sample) and ``classes``. ``norm`` and ``output_elu`` are for the zoo.
    """

    name: Annotated[ModelName | str, MODEL_NAME] = ModelName.CNN
    options: dict[Text, bool | int | float | Text | tuple[int | float | Text, ...] | None] = {}
    init: Init = Init.SIGNED
    norm: Norm = Norm.GROUP
    output_elu: bool = False

    @model_validator(mode="after")
    def _options_of_own_code(self) -> "ModelConfig":
        if self.options and not self.own:
            raise ValueError(f"options are those of own networks; {self.name} has none")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_options(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out options where there are none: settings of older tickets and runs stay as they were."""
        written: dict[str, Any] = write(self)
        if not self.options:
            written.pop("options", None)
        return written

    @property
    def own(self) -> bool:
        """Whether it is the user's own code."""
        return not isinstance(self.name, ModelName)

    @property
    def title(self) -> str:
        """What people call the network: its name, without the folders of a file."""
        return PurePath(self.name).name


class AlgorithmConfig(Settings):
    """MCE-PL's constants, and its variants, which are off by default.

    ``min_filter_weights``: filters that keep at most this many weights are dropped (structured variant; the paper: 20).
    ``inertia``: a peer's own last mask lifts its scores too, by this factor of what the neighbours' mean does: fewer
    bits flip. ``momentum``: share of the neighbours' mean that stays from one round to the next.
    ``heavy_ball``: share of a step's direction that stays in the next one (momentum of the scores).
    ``relative``: rates are relative to scores: a step moves a layer's scores by ``lr`` times their mean magnitude on
    average, however large the gradient is. ``schedule``: what becomes of both rates over the run's rounds; ``linear``
    and ``cosine`` fall to 0. ``lift``: how much neighbours' masks lift scores, as a multiple of the paper's.
    ``mean``: how neighbours' masks are averaged; all but ``plain`` defend against neighbours that lie, see
    ``algorithm.combine``. ``epsilon``: each bit of a sent mask is flipped with probability ``1 / (1 + exp(epsilon))``
    (randomised response), and the mean is corrected for that bias; None: no bit is.
    """

    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    fine_tune_lr: Annotated[float, Field(ge=0)]
    local_steps: Positive = 1
    batch: Positive = 128
    density: Density
    lasso: Annotated[float, Field(ge=0)] = 0.0
    min_filter_weights: Count = 0
    scores: Scores = Scores.OWN
    inertia: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    heavy_ball: Annotated[float, Field(ge=0, lt=1)] = 0.0
    relative: bool = False
    schedule: Schedule = Schedule.CONSTANT
    lift: Annotated[float, Field(ge=0, le=1000)] = 1.0
    mean: Annotated[MeanName | str, Named(MeanName, "means")] = MeanName.PLAIN
    epsilon: Annotated[float, Field(ge=0.001, le=100)] | None = None
    exchange: bool = True

    @property
    def flip(self) -> float:
        """Probability that a bit is flipped before it is sent."""
        return 0.0 if self.epsilon is None else 1 / (1 + exp(self.epsilon))


class ExperimentConfig(Settings):
    """What all peers of a run agree on.

    ``mode``: how a round treats late neighbours. ``sync`` waits for all up to the ``deadline`` (seconds; ``none``:
    until they are back), and for a neighbour that missed it not again until it is heard again; ``deadline`` waits each
    round for all that are connected; ``async`` never waits and uses each neighbour's newest mask that is at most
    ``staleness`` rounds older than its own. ``checkpoint_every``: rounds between two checkpoints, 0 for none; they are
    removed when the run has finished unless ``keep_checkpoints``. ``evaluate_every``: rounds between two evaluations;
    ``auto``: so many that they take a tenth of the compute at most. The last round is always evaluated.
    """

    preset: Preset = Preset.SIGNED
    seed: Seed = 1
    rounds: Positive = 20
    data: DataConfig = DataConfig()
    model: ModelConfig
    algorithm: AlgorithmConfig
    codec: Annotated[CodecName | str, Named(CodecName, "codecs")] = CodecName.AUTO
    mode: Mode = Mode.SYNC
    deadline: Annotated[float, Field(gt=0)] | Literal["none"] = 60.0
    staleness: Positive = 5
    checkpoint_every: Count = 5
    keep_checkpoints: bool = False
    evaluate_every: Positive | Literal["auto"] = "auto"


_SIGNED: Mapping[str, Mapping[str, Any]] = {
    "model": {"init": Init.SIGNED, "norm": Norm.GROUP, "output_elu": False},
    "algorithm": {
        "lr": 1.0,
        "fine_tune_lr": 1.0,
        "local_steps": 2,
        "density": {"conv": 0.5, "linear": 0.9},
        "scores": Scores.COMMON,
    },
}

_STRONG: Mapping[str, Any] = {
    "lr": 0.2,
    "fine_tune_lr": 0.0,
    "heavy_ball": 0.9,
    "relative": True,
    "schedule": Schedule.LINEAR,
    "lift": 2.0,
}

PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    # For accuracy: signed constants, group norm, several steps a round.
    Preset.SIGNED: _SIGNED,
    # As signed, with what was measured to help at equal steps: docs/experiments/recipe.md.
    Preset.STRONG: {**_SIGNED, "algorithm": {**_SIGNED["algorithm"], **_STRONG}},
    # The paper's protocol, constant for constant.
    Preset.MCE_PL: {
        "model": {"init": Init.DEFAULT, "norm": Norm.LOCAL_RESPONSE, "output_elu": True},
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


def computing_device(name: str) -> str:
    """Return the name of what torch computes on; raises ValueError if it is not ``cpu``, ``cuda`` or ``cuda:N``."""
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        raise ValueError("expected cpu, cuda or cuda:N")
    return name


class DeviceConfig(Settings):
    """What kind of device a peer is: a profile under ``peers/``, or a peer's own entry. Its keys win over the run's.

    ``device`` is what torch computes on. ``speed`` below 1 stretches the peer's computing time by 1/speed, so that a
    fast machine can play a slow device.
    ``link`` is the peer's own link in virtual time, in place of the network's; of an edge the slower end's counts.
    ``step_seconds`` is what a local step takes in virtual time at speed 1.
    """

    description: Text = ""
    density: Density | None = None
    batch: Positive | None = None
    threads: Annotated[int, Field(ge=1, le=1024, strict=True)] = 1
    speed: Annotated[float, Field(ge=1e-6, le=1)] = 1.0
    link: LinkSetting | None = None
    step_seconds: Annotated[float, Field(ge=0, le=86400)] = 0.01
    device: Annotated[str, AfterValidator(computing_device)] = "cpu"


class PeerConfig(DeviceConfig):
    """One peer's entry. In a file, ``profile`` names a profile; the entry's own keys win over the profile's.

    Reading puts the profile's keys here and its name into ``kind``.
    """

    kind: Text = "this machine"


class RunConfig(Settings):
    """A topology file, read and checked."""

    graph: GraphConfig
    network: NetworkConfig | None = None
    experiment: ExperimentConfig
    peers: dict[Whole, PeerConfig] = {}

    def device(self, peer: int) -> PeerConfig:
        """Return the settings of a peer's device."""
        return self.peers.get(peer, PeerConfig())

    def link(self, peer: int) -> LinkSetting:
        """Return what connects a peer in virtual time."""
        own = self.device(peer).link
        return own if own is not None else (self.network or NetworkConfig()).link

    @property
    def has_links(self) -> bool:
        """Whether the file names a link, which matters in virtual time only."""
        links = ((self.network or NetworkConfig()).link, *(device.link for device in self.peers.values()))
        return any(link not in (None, LinkName.NONE) for link in links)

    def on(self, device: str, n_peers: int) -> "RunConfig":
        """Return the same run with all peers computing on ``device``."""
        peers = {peer: self.device(peer).model_copy(update={"device": device}) for peer in range(n_peers)}
        return self.model_copy(update={"peers": self.peers | peers})

    def check_peers(self, n_peers: int) -> None:
        """Raise UnknownPeerError if the file names a peer that the graph does not have."""
        for peer in self.peers:
            check_peer(peer, n_peers, "peers")

    def to_yaml(self) -> str:
        """Return the file's text with every default spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)


def check_peer(peer: int, n_peers: int, where: str) -> None:
    """Raise UnknownPeerError unless the graph has this peer."""
    if not 0 <= peer < n_peers:
        raise UnknownPeerError(f"{where}: there is no peer {peer}; this graph has peers 0 to {n_peers - 1}")


def identity(run: RunConfig, edges: str) -> dict[str, str]:
    """Return all that peers of one run must share, flat: ``{"seed": "1", "algorithm.lr": "1.0", ...}``.

    Peers may choose for themselves, so left out are: rounds, data folder, codec, deadline, staleness, checkpoints,
    evaluation, device, links. So are settings that came after the first version while they are off: validation,
    ``heavy_ball`` and others of the algorithm. Where own data and own code lie and how data are read is a peer's own
    business: hellos say what data and which layers they are.
    """
    reading = ("folder", "path", "label", "client", "classes", "shape", "tokens")
    data = {*reading, "test_samples", *(() if run.experiment.data.validation else ("validation",))}
    later = ("heavy_ball", "relative", "schedule", "lift")
    algorithm = {
        key for key in later if getattr(run.experiment.algorithm, key) == AlgorithmConfig.model_fields[key].default
    }
    shared = run.experiment.model_dump(
        mode="json",
        exclude=dict.fromkeys(
            (
                *("preset", "rounds", "codec", "deadline", "staleness"),
                *("checkpoint_every", "keep_checkpoints", "evaluate_every"),
            ),
            True,
        )
        | {"data": data, "algorithm": algorithm, "model": {"name"} if run.experiment.model.own else set()},
    )
    return {"topology": edges, **dict(_flatten("", shared))}


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, below in sorted(value.items()):
            yield from _flatten(f"{prefix}.{key}" if prefix else key, below)
    else:
        yield prefix, str(value)
