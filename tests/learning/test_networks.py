"""Networks of the user's own: what of them is masked, what stays as it is, what is refused; and whose code is run."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dslth import algorithm, config
from dslth.config import ExperimentConfig, Inputs, ModelConfig
from dslth.errors import ConfigError, MissingFileError
from dslth.learning import footprint, networks, supermask
from dslth.learning.supermask import FrozenNet
from dslth.masks import BitMask
from dslth.personal import compact, nets
from dslth.runs import tickets
from dslth.runs.tickets import Ticket

IMAGES = Inputs(shape=(3, 8, 8), number="uint8", classes=4)
FEATURES = Inputs(shape=(6,), number="float32", classes=4, mean=(0.0,) * 6, deviation=(1.0,) * 6)
TOKENS = Inputs(shape=(5,), number="int64", classes=4)
SERIES = Inputs(shape=(2, 16), number="float32", classes=4)

CODE = """
import torch
from torch import nn
from beside import WIDTH

class Features(nn.Sequential):
    def __init__(self, shape, classes, width=WIDTH):
        super().__init__(nn.Linear(shape[0], width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, classes))

class Words(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.embedding = nn.Embedding(30, 16, padding_idx=0)
        self.place = nn.Parameter(torch.randn(5, 16))
        self.attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.last = nn.Linear(16, classes)

    def forward(self, x):
        return self.last(self.attention(self.embedding(x) + self.place).mean(1))

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(6, 6, bias=False)
        self.two = nn.Linear(6, 6, bias=False)
        self.two.weight = self.one.weight
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.two(torch.relu(self.one(x))))

def series(classes):
    return nn.Sequential(
        nn.Conv1d(2, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.ConvTranspose1d(8, 4, 2, groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, classes),
    )

def batch_norm(): return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4))
def recurrent(): return nn.Sequential(nn.GRU(6, 4))
def lazy(): return nn.LazyLinear(4)
def computed(): return nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
def nothing(): return nn.ReLU()
def wide(): return nn.Linear(6, 9)
def other(): return nn.Linear(5, 4)
def word(): return "network"
def failing(): raise RuntimeError("no\\nnetwork")
number = 3
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 12\n")
    (tmp_path / "nets.py").write_text(CODE)
    return tmp_path / "nets.py"


def settings(name: str, **keys: object) -> ExperimentConfig:
    return config.load("ring", {"experiment": {"model": {"name": name, **keys}}}).experiment


def learn(net: FrozenNet, x: torch.Tensor) -> list[torch.Tensor]:
    """Take a step; return the gradient of each layer's scores."""
    scores = supermask.initial_scores(net, 1, "common")
    setting = algorithm.Setting(densities=[0.5] * len(scores), lr=1.0, weight_decay=0.0, fine_tune_lr=1.0)
    means = [torch.zeros_like(s) for s in scores]
    masks = algorithm.extract_masks(scores, means, setting)
    return algorithm.gradient(net, masks, scores, means, x, torch.arange(len(x)) % 4, setting).g


@pytest.mark.parametrize(
    ("name", "inputs", "masked"),
    [
        ("Features", FEATURES, {"0.weight": (12, 6), "3.weight": (4, 12)}),
        (
            "Words",
            TOKENS,
            {
                "embedding.weight": (30, 16),
                "attention.self_attn.in_proj_weight": (48, 16),
                "attention.self_attn.out_proj.weight": (16, 16),
                "attention.linear1.weight": (32, 16),
                "attention.linear2.weight": (16, 32),
                "last.weight": (4, 16),
            },
        ),
        ("series", SERIES, {"0.weight": (8, 2, 3), "3.weight": (8, 2, 2), "8.weight": (4, 8)}),
        ("Tied", FEATURES, {"one.weight": (6, 6), "last.weight": (4, 6)}),
    ],
)
def test_what_is_masked_learns_and_all_else_stays(
    name: str, inputs: Inputs, masked: dict[str, tuple[int, ...]], code: Path
) -> None:
    experiment = settings(f"{code}:{name}")
    torch.manual_seed(1)
    net = networks.frozen(experiment, inputs)
    assert {n: tuple(w.shape) for n, w in zip(net.names, net.weights, strict=True)} == masked
    before = {key: value.clone() for key, value in net.module.state_dict().items()}
    x = torch.arange(1, 6).repeat(8, 1) if inputs is TOKENS else torch.randn(8, *inputs.shape)
    gradients = learn(net, x)
    assert all(bool(g.abs().sum() > 0) for g in gradients)
    assert all(torch.equal(value, net.module.state_dict()[key]) for key, value in before.items())
    torch.manual_seed(2)
    again = networks.frozen(experiment, inputs)  # all of it comes from the run's seed
    assert all(torch.equal(value, again.module.state_dict()[key]) for key, value in before.items())
    other = networks.frozen(experiment.model_copy(update={"seed": 2}), inputs)
    assert any(not torch.equal(a, b) for a, b in zip(net.weights, other.weights, strict=True))
    assert networks.structure(net) == networks.structure(other)


def test_weights_are_signed_constants_of_the_size_that_keeps_a_layers_scale(code: Path) -> None:
    net = networks.frozen(settings(f"{code}:Words"), TOKENS)
    sizes = {name: weight.abs().max().item() for name, weight in zip(net.names, net.weights, strict=True)}
    assert sizes["embedding.weight"] == pytest.approx((2 / 0.9) ** 0.5)  # one weight makes a number
    assert sizes["last.weight"] == pytest.approx((2 / (16 * 0.9)) ** 0.5)
    assert not net.weights[0][0].any()  # what fills up a sequence
    deconvolution = networks.frozen(settings(f"{code}:series"), SERIES).weights[1]
    assert deconvolution.abs().max().item() == pytest.approx((2 / (4 * 2 * 0.5)) ** 0.5)


def test_an_own_copy_of_a_net_of_the_zoo_gets_the_same_weights(code: Path) -> None:
    code.write_text("from torch import nn\ndef mlp(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 256), nn.ELU(),"
                    "nn.Linear(256, 128), nn.ELU(), nn.Linear(128, 4))\n")  # fmt: skip
    ours, theirs = (networks.frozen(settings(name), IMAGES) for name in ("mlp", f"{code}:mlp"))
    assert all(torch.equal(a, b) for a, b in zip(ours.weights, theirs.weights, strict=True))


def test_options_reach_the_factory_and_nothing_is_drawn_from_the_global_generator(code: Path) -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    wide = networks.frozen(settings(f"{code}:Features", options={"width": 40}), FEATURES)
    networks.frozen(settings(f"{code}:Words"), TOKENS)
    assert wide.sizes == (240, 160)
    assert torch.equal(before, torch.get_rng_state())
    assert str(code.parent) not in sys.path


def test_the_memory_of_an_own_network_is_told_by_trying_it(code: Path) -> None:
    assert footprint.size(settings(f"{code}:Features"), FEATURES) == (12 * 6 + 4 * 12, 12)
    weights, widest = footprint.size(settings("mlp"), IMAGES)
    assert (weights, widest) == networks.measure(settings("mlp"), IMAGES)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("batch_norm", "layer 2: BatchNorm1d keeps running statistics"),
        ("recurrent", "GRU is not supported"),
        ("lazy", "LazyLinear does not know its size"),
        ("computed", "is computed"),
        ("nothing", "no linear, convolution or embedding layer"),
        ("wide", "puts out torch.float32 (2, 9) for two samples; expected logits, torch.float32 (2, 4)"),
        ("other", "fails on samples of float32 6, 4 classes"),
        ("word", "made a str"),
        ("failing", "failed: RuntimeError: no network"),
        ("number", "is not a class or function"),
        ("missing", "cannot be imported: AttributeError"),
    ],
)
def test_what_cannot_be_masked_is_refused_in_one_line(name: str, words: str, code: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        networks.network(settings(f"{code}:{name}"), FEATURES)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [("./gone.py:Net", "there is no file"), ("no_such_package.nets:Net", "No module named 'no_such_package'")],
)
def test_code_that_is_not_there_is_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        networks.network(settings(name), FEATURES)


def test_code_that_does_not_run_is_imported_anew_next_time(code: Path) -> None:
    good = code.read_text()
    code.write_text("import nothing_like_this")
    with pytest.raises(ConfigError, match="nothing_like_this"):
        networks.network(settings(f"{code}:Features"), FEATURES)
    code.write_text(good)
    assert isinstance(networks.network(settings(f"{code}:Features"), FEATURES), nn.Module)


@pytest.mark.parametrize("name", ["alexnet", "nets.py", "nets.py:", "nets.py:a b", ":Net:", 3])
def test_names_that_are_neither_of_the_zoo_nor_code_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match="expected mlp, cnn, resnet8, or own code"):
        ModelConfig.model_validate({"name": name})


@pytest.mark.parametrize(
    ("name", "inputs", "words"),
    [
        ("cnn", FEATURES, "cnn takes square images"),
        ("resnet8", Inputs(shape=(3, 8, 9), number="uint8", classes=2), "takes square images"),
        ("mlp", TOKENS, "mlp takes features"),
        ("mlp", Inputs(shape=(1 << 21,), number="float32", classes=2), "the most is 268,435,456"),
    ],
)
def test_a_net_of_the_zoo_says_what_it_takes(name: str, inputs: Inputs, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        networks.network(settings(name), inputs)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (1 << 20, 1 << 20)},
        {"classes": 1 << 20},
        {"mean": (0.0,) * 5, "deviation": (1.0,) * 5},
        {"mean": (0.0,) * 6, "deviation": ()},
        {"names": ("a", "b")},
    ],
)
def test_inputs_that_no_network_has_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"or more than|or none"):
        Inputs.model_validate(FEATURES.model_dump() | wrong)


# --- tickets --------------------------------------------------------------------------------------------------------


def ticket(code: Path, name: str = "Features") -> Ticket:
    experiment = settings(f"{code}:{name}")
    net = networks.frozen(experiment, FEATURES)
    draws = np.random.default_rng(1)
    masks = [draws.random(tuple(w.shape)) < 0.9 for w in net.weights]
    given = FEATURES.model_copy(update={"names": ("a", "b", "c", "d"), "mean": (1.5,) * 6})
    data = config.DataConfig.model_validate({"path": "/home/me/mine.csv"})
    experiment = experiment.model_copy(update={"data": data})
    return Ticket(1, experiment, tuple(tuple(w.shape) for w in net.weights), BitMask.from_arrays(masks), given)


def test_a_ticket_never_says_which_code_is_run(code: Path, tmp_path: Path) -> None:
    made = ticket(code)
    mark = tmp_path / "was run"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nfrom nets import Features\n")
    evil = made.experiment.model.model_copy(update={"name": f"{tmp_path / 'evil.py'}:Features"})
    changed = Ticket(1, made.experiment.model_copy(update={"model": evil}), made.shapes, made.mask, made.inputs)
    tickets.store(changed, tmp_path / "evil.safetensors")
    for peer_file in (tmp_path / "evil.safetensors",):
        loaded = compact.load(peer_file)
        with pytest.raises(ConfigError, match=r"never run on the word of a ticket.*nets\.py:Features"):
            nets.dense(loaded)
    packed = compact.pack(made)
    with pytest.raises(ConfigError, match="never run on the word of a ticket"):
        compact.unpack(packed)
    assert not mark.exists()
    assert b"/home/me" not in packed
    assert str(tmp_path).encode() not in packed
    assert nets.dense(compact.load(tmp_path / "evil.safetensors", f"{code}:Features"))


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/home/me/mine.csv", "mine.csv"),
        ("/home/me/{id}.npz", "{id}.npz"),
        ("/me/peer-{id}/x/a.npz", "peer-{id}/x/a.npz"),
    ],
)
def test_a_compact_ticket_keeps_of_a_path_what_is_not_of_one_machine(path: str, kept: str, code: Path) -> None:
    made = ticket(code)
    data = config.DataConfig.model_validate({"path": path})
    moved = replace(made, experiment=made.experiment.model_copy(update={"data": data}))
    assert compact.unpack(compact.pack(moved), f"{code}:Features").experiment.data.path == kept


def test_both_forms_of_an_own_ticket_give_the_same_network(code: Path, tmp_path: Path) -> None:
    made = ticket(code)
    tickets.store(made, tmp_path / "one.safetensors")
    compact.store(made, tmp_path / "one.dslth")
    x = torch.randn(4, 6)
    expected = nets.dense(made)(x)
    for form in ("one.safetensors", "one.dslth"):
        loaded = compact.load(tmp_path / form, f"{code}:Features")
        assert loaded.inputs == made.inputs
        assert torch.equal(nets.dense(loaded)(x), expected)
    with pytest.raises(MissingFileError, match="layers are not those"):
        nets.dense(compact.load(tmp_path / "one.safetensors", f"{code}:Tied"))
