"""The names that topology files, command lines and reports choose from, each spelled here and nowhere else."""

from enum import StrEnum

__all__ = [
    "CodecName",
    "DataName",
    "EngineName",
    "FileKind",
    "GraphName",
    "Init",
    "LinkName",
    "MeanName",
    "Mode",
    "ModelName",
    "Norm",
    "Phase",
    "Preset",
    "Restart",
    "Schedule",
    "Scores",
    "Security",
    "TransportName",
]


class Preset(StrEnum):
    """Named groups of settings that a file builds on."""

    SIGNED = "signed"
    STRONG = "strong"
    MCE_PL = "mce-pl"


class FileKind(StrEnum):
    """Kinds of files that people write for dslth."""

    TOPOLOGY = "topology"
    PROFILE = "profile"
    EXPERIMENT = "experiment"
    STUDY = "study"


class GraphName(StrEnum):
    """Graphs for which a number of peers is enough."""

    RING = "ring"
    LINE = "line"
    STAR = "star"
    FULL = "full"
    GRID = "grid"
    TORUS = "torus"
    ERDOS_RENYI = "erdos-renyi"
    SMALL_WORLD = "small-world"
    RANDOM_REGULAR = "random-regular"


class DataName(StrEnum):
    """Data sets."""

    DIGITS = "digits"
    MNIST = "mnist"
    FASHION_MNIST = "fashion-mnist"
    CIFAR10 = "cifar10"


class ModelName(StrEnum):
    """Networks."""

    MLP = "mlp"
    CNN = "cnn"
    RESNET8 = "resnet8"


class Init(StrEnum):
    """How frozen weights are drawn."""

    DEFAULT = "default"
    SIGNED = "signed"


class Norm(StrEnum):
    """What normalises activations between layers."""

    LOCAL_RESPONSE = "local-response"
    GROUP = "group"


class Scores(StrEnum):
    """Whether each peer draws its own first scores, or all have the same."""

    OWN = "own"
    COMMON = "common"


class Schedule(StrEnum):
    """What becomes of the rates over a run's rounds."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class MeanName(StrEnum):
    """How neighbours' masks are averaged."""

    PLAIN = "plain"
    TRIMMED = "trimmed"
    MEDIAN = "median"
    SIMILAR = "similar"


class CodecName(StrEnum):
    """How masks are coded."""

    AUTO = "auto"
    BITPACK = "bitpack"
    RANGE = "range"
    DELTA = "delta"
    CONTEXT = "context"


class Mode(StrEnum):
    """How a round treats late neighbours."""

    SYNC = "sync"
    DEADLINE = "deadline"
    ASYNC = "async"


class Security(StrEnum):
    """Whether peers encrypt and demand keys; ``auto``: if an address is not loopback."""

    AUTO = "auto"
    CURVE = "curve"
    NONE = "none"


class Phase(StrEnum):
    """What the time of a round is spent on."""

    COMPUTE = "compute"
    ENCODE = "encode"
    WAIT = "wait"
    DECODE = "decode"
    FINE_TUNE = "fine_tune"
    EVALUATE = "evaluate"


class LinkName(StrEnum):
    """Links between peers in virtual time."""

    NONE = "none"
    LORA = "lora"
    NB_IOT = "nb-iot"
    LTE_M = "lte-m"
    WIFI = "wifi"
    ETHERNET = "ethernet"


class TransportName(StrEnum):
    """How masks travel."""

    ZEROMQ = "zeromq"
    MEMORY = "memory"


class EngineName(StrEnum):
    """Who runs the peers."""

    LOCAL = "local"
    RAY = "ray"
    BATCHED = "batched"


class Restart(StrEnum):
    """When a peer is restarted."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
