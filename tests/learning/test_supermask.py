"""The frozen network, the zoo, top-k, and tickets."""

import hashlib
import json
from collections.abc import Sequence
from math import prod, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import nn
from torch.nn import functional as F

from dslth.config import PRESETS, AlgorithmConfig, ByKind, ExperimentConfig, ModelConfig
from dslth.errors import ConfigError, MissingFileError, OutputError
from dslth.learning import models
from dslth.learning.supermask import FrozenNet, densities, dropped, freeze, initial_scores, structured, top_k
from dslth.masks import BitMask
from dslth.runs import tickets

PROPERTY = settings(max_examples=50, deadline=None, database=None)

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


def build(name: str, shape: tuple[int, int, int] = (1, 8, 8), **rest: object) -> nn.Module:
    return models.build(ModelConfig.model_validate({"name": name, **rest}), shape, 10)


def float_bytes(net: FrozenNet) -> bytes:
    return b"".join(weight.numpy().astype("<f4").tobytes() for weight in net.weights)


# --- top-k ----------------------------------------------------------------------------------------------------------

shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6)
few_values = st.sampled_from([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0])
scores = hnp.arrays(np.float32, shapes, elements=few_values) | hnp.arrays(
    np.float32, shapes, elements=st.floats(-10, 10, width=32)
)
shares = st.sampled_from([1e-17, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0]) | st.floats(0.001, 1)


def plain_top_k(scores: NDArray[np.float32], k: float) -> NDArray[np.bool_]:
    """Sort by magnitude, the lower index first among equals, and drop ``int((1-k)*n)`` from the front."""
    order = np.argsort(np.abs(scores.ravel()), kind="stable")
    kept = np.ones(scores.size, bool)
    kept[order[: int((1 - k) * scores.size)]] = False
    return kept.reshape(scores.shape)


@PROPERTY
@given(scores, shares)
def test_top_k_is_a_stable_sort_by_magnitude(scores: NDArray[np.float32], k: float) -> None:
    mask = top_k(torch.from_numpy(scores), k)
    assert mask.dtype == torch.bool
    np.testing.assert_array_equal(mask.numpy(), plain_top_k(scores, k))


def test_top_k_drops_the_lower_flat_index_first_among_equals() -> None:
    kept = top_k(torch.tensor([[1.0, -1.0, 3.0], [1.0, -1.0, 0.5]]), 0.5)
    assert kept.tolist() == [[False, False, True], [True, True, False]]
    assert top_k(torch.zeros(4, 5), 0.25).flatten().nonzero().flatten().tolist() == [15, 16, 17, 18, 19]


def test_top_k_looks_at_values_only() -> None:
    scores = torch.randn(10, 10, generator=torch.Generator().manual_seed(1), requires_grad=True)
    before = scores.detach().clone()
    mask = top_k(scores, 0.3)
    assert not mask.requires_grad
    assert torch.equal(scores.detach(), before)
    assert torch.equal(top_k(-scores.t().t(), 0.3), mask)


@pytest.mark.parametrize(
    ("n", "k", "expected"), [(10, 0.9, 0), (10, 0.7, 3), (10, 0.3, 7), (819_200, 0.3, 573_440), (9, 0.5, 4), (7, 1, 0)]
)
def test_dropped_count_is_truncated_in_double_precision(n: int, k: float, expected: int) -> None:
    assert dropped(n, k) == expected
    assert top_k(torch.arange(n) + 1.0, k).sum() == n - expected


# --- frozen weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["default", "signed"])
def test_same_seed_same_weights_whatever_torch_drew_before(init: str) -> None:
    torch.manual_seed(1)
    one = freeze(build("cnn"), 5, init, 0.5)
    torch.manual_seed(2)
    two = freeze(build("cnn"), 5, init, 0.5)
    other = freeze(build("cnn"), 6, init, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(one.weights, two.weights, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.weights, other.weights, strict=True))
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(one(one.weights, images), two(two.weights, images))  # biases too


@pytest.mark.parametrize(
    ("init", "digest"),
    [
        ("default", "be884bfadb036f3c1ec7a1207e8311de7e64cca8612332c4314e93e86be4f6ff"),
        ("signed", "2300f67796cc91cf55b013502db7e8f5444493e6924e93a7edb322d17a813ea7"),
    ],
)
def test_weights_are_the_same_on_every_machine(init: str, digest: str) -> None:
    net = freeze(build("mlp"), 7, init, 0.5)
    assert all(weight.dtype == torch.float32 for weight in net.weights)
    assert hashlib.sha256(float_bytes(net)).hexdigest() == digest


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8"])
@pytest.mark.parametrize("density", [0.5, ByKind(conv=0.3, linear=0.9)], ids=["one", "by-kind"])
def test_signed_weights_are_plus_minus_the_kaiming_constant(name: str, density: float | ByKind) -> None:
    net = freeze(build(name), 1, "signed", density)
    for weight in net.weights:
        k = density if isinstance(density, float) else density.conv if weight.dim() == 4 else density.linear
        constant = sqrt(2 / (prod(weight.shape[1:]) * k))
        assert weight.abs().flatten().unique().tolist() == pytest.approx([constant], rel=1e-6)
        assert abs(weight.sign().mean()) < 4 / sqrt(weight.numel())
    biases = [layer.bias for layer in net.module.modules() if getattr(layer, "bias", None) is not None]
    assert biases
    assert not any(bias.any() for bias in biases)


def test_default_weights_and_biases_are_uniform_in_one_over_root_fan_in() -> None:
    net = freeze(build("cnn"), 1, "default", 0.5)
    layers = [layer for layer in net.module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == len(net.weights) == 4
    for layer, weight in zip(layers, net.weights, strict=True):
        bound = 1 / sqrt(prod(weight.shape[1:]))
        scaled = weight.double().flatten() / bound
        assert scaled.abs().max() <= 1 + 1e-6
        assert scaled.abs().max() > 0.98
        assert abs(scaled.mean()) < 4 / sqrt(3 * scaled.numel())
        assert scaled.square().mean() == pytest.approx(1 / 3, rel=0.2)
        if layer.bias is not None:
            assert layer.bias.any()
            assert layer.bias.abs().max() <= bound * (1 + 1e-6)


def test_default_weights_do_not_depend_on_the_density() -> None:
    assert float_bytes(freeze(build("mlp"), 1, "default", 0.5)) == float_bytes(freeze(build("mlp"), 1, "default", 0.1))


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8"])
@pytest.mark.parametrize("norm", ["group", "local-response"])
def test_nothing_in_a_frozen_net_learns(name: str, norm: str) -> None:
    net = freeze(build(name, norm=norm), 1, "signed", 0.5)
    parameters = dict(net.module.named_parameters())
    assert not any(parameter.requires_grad for parameter in parameters.values())
    assert not any(module.training for module in net.module.modules())
    assert set(net.names) == {name for name in parameters if name.endswith("weight")}  # every weight is masked
    assert net.sizes == tuple(parameters[name].numel() for name in net.names)


def test_a_call_uses_the_masked_weights_and_leaves_the_own_ones() -> None:
    net = freeze(build("cnn"), 1, "default", 0.5)
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    before = float_bytes(net)
    full, empty = net(net.weights, images), net([torch.zeros_like(w) for w in net.weights], images)
    assert torch.equal(full, net.module(images))
    assert torch.equal(empty[0], empty[1])
    assert not torch.equal(full[0], full[1])
    assert float_bytes(net) == before


def test_gradients_reach_the_masked_weights() -> None:
    net = freeze(build("cnn"), 1, "signed", 0.5)
    masked = [weight.clone().requires_grad_() for weight in net.weights]
    net(masked, torch.rand(2, 1, 8, 8)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in masked)


LAYERS = [(8, 1, 3, 3), (16, 8, 3, 3), (10, 64)]


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.25, (0.25, 0.25, 0.25)),
        (1, (1.0, 1.0, 1.0)),
        (ByKind(conv=0.3, linear=0.9), (0.3, 0.3, 0.9)),
        ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3)),
    ],
)
def test_densities_for_all_by_kind_and_layer_by_layer(
    density: float | ByKind | tuple[float, ...], expected: tuple[float, ...]
) -> None:
    assert densities(density, LAYERS) == expected


@pytest.mark.parametrize("density", [(0.1, 0.2), (0.1, 0.2, 0.3, 0.4), ()])
def test_a_list_of_densities_must_fit_the_layers(density: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=f"{len(density)} values for a network of 3 masked layers"):
        densities(density, LAYERS)


def test_first_scores_are_kaiming_uniform_and_differ_by_owner_and_seed() -> None:
    net = freeze(build("cnn"), 1, "signed", 0.5)

    def drawn(seed: int, owner: int | str) -> Sequence[torch.Tensor]:
        return initial_scores(net, seed, owner)  # type: ignore[arg-type]

    for scores, weight in zip(drawn(1, 0), net.weights, strict=True):
        bound = 1 / sqrt(prod(weight.shape[1:]))
        assert scores.shape == weight.shape
        assert scores.dtype == torch.float32
        assert 0.98 * bound < scores.abs().max() <= bound * (1 + 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(drawn(1, 0), drawn(1, 0), strict=True))
    different = [drawn(1, 0), drawn(1, 1), drawn(2, 0), drawn(1, "common")]
    assert len({scores[0].numpy().tobytes() for scores in different}) == 4


def test_structured_drops_filters_that_keep_too_little() -> None:
    mask = torch.zeros(4, 3, 2, 2, dtype=torch.bool)
    for filter_, kept in enumerate((0, 4, 5, 12)):
        mask[filter_].view(-1)[:kept] = True
    assert structured(mask, 4).flatten(1).sum(1).tolist() == [0, 0, 5, 12]
    assert structured(mask, 0) is mask
    rows = torch.tensor([[True, True, False], [True, False, False]])
    assert structured(rows, 1).tolist() == [[True, True, False], [False, False, False]]


# --- the zoo --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_model_takes_every_image_size(name: str, shape: tuple[int, int, int], preset: str) -> None:
    settings = ModelConfig.model_validate({"name": name, **PRESETS[preset]["model"]})
    net = freeze(models.build(settings, shape, 10), 3, settings.init, 0.5)
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    logits = net(net.weights, images)
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
    assert logits.std() > 1e-3
    assert torch.allclose(logits[:1], net(net.weights, images[:1]), atol=1e-4)  # samples do not see each other


def test_papers_net_has_its_masked_weights() -> None:
    net = freeze(build("cnn", (3, 32, 32), norm="local-response", output_elu=True), 1, "default", 0.3)
    assert sum(net.sizes) == 1_227_328
    assert [tuple(weight.shape) for weight in net.weights] == [
        (64, 3, 5, 5),
        (128, 64, 5, 5),
        (256, 128, 5, 5),
        (192, 1024),
        (10, 192),
    ]


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8"])
def test_output_elu_is_one_more_elu(name: str) -> None:
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = freeze(build(name), 1, "signed", 0.5)
    bent = freeze(build(name, output_elu=True), 1, "signed", 0.5)
    logits = plain(plain.weights, images)
    assert (logits < 0).any()
    assert torch.equal(bent(bent.weights, images), F.elu(logits))


# --- tickets --------------------------------------------------------------------------------------------------------

TICKET_SHAPES = ((8, 1, 3, 3), (10, 7), (3, 1))


@pytest.fixture
def ticket() -> tickets.Ticket:
    rng = np.random.default_rng(1)
    experiment = ExperimentConfig(
        seed=9,
        model=ModelConfig(name="mlp", norm="local-response"),
        algorithm=AlgorithmConfig(lr=0.1, fine_tune_lr=1e-7, density=ByKind(conv=0.3, linear=0.9)),
    )
    return tickets.Ticket(4, experiment, TICKET_SHAPES, BitMask.from_arrays(rng.random(s) < 0.4 for s in TICKET_SHAPES))


def test_a_ticket_reads_back_as_stored(ticket: tickets.Ticket, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "peer-4.safetensors"
    tickets.store(ticket, path)
    assert tickets.load(path) == ticket
    assert [file.name for file in path.parent.iterdir()] == ["peer-4.safetensors"]


def test_a_ticket_of_a_real_net_rebuilds_its_masked_weights(tmp_path: Path) -> None:
    net = freeze(build("cnn"), 3, "signed", 0.5)
    kept = [top_k(s, 0.5) for s in initial_scores(net, 3, 0)]
    experiment = ExperimentConfig(
        seed=3, model=ModelConfig(name="cnn"), algorithm=AlgorithmConfig(lr=1, fine_tune_lr=1, density=0.5)
    )
    stored = tickets.Ticket(
        0, experiment, tuple(tuple(w.shape) for w in net.weights), BitMask.from_arrays(m.numpy() for m in kept)
    )
    tickets.store(stored, tmp_path / "t.safetensors")
    ticket = tickets.load(tmp_path / "t.safetensors")
    settings = ticket.experiment
    again = freeze(
        models.build(settings.model, (1, 8, 8), 10), settings.seed, settings.model.init, settings.algorithm.density
    )
    masks = [torch.from_numpy(bits).reshape(s) for bits, s in zip(ticket.mask.arrays(), ticket.shapes, strict=True)]
    images = torch.rand(2, 1, 8, 8)
    expected = net([w * m for w, m in zip(net.weights, kept, strict=True)], images)
    assert torch.equal(again([w * m for w, m in zip(again.weights, masks, strict=True)], images), expected)


def test_a_stored_ticket_replaces_the_one_before(ticket: tickets.Ticket, tmp_path: Path) -> None:
    path = tmp_path / "peer-4.safetensors"
    path.write_bytes(b"something else")
    tickets.store(ticket, path)
    assert tickets.load(path) == ticket


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_cut_off_ticket_is_refused_by_name(ticket: tickets.Ticket, tmp_path: Path, share: float) -> None:
    path = tmp_path / "peer-4.safetensors"
    tickets.store(ticket, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(MissingFileError, match=r"peer-4\.safetensors"):
        tickets.load(path)


@pytest.mark.parametrize("position", [-1, -10, 0, 8, 12])
def test_a_ticket_with_a_wrong_byte_is_refused_by_name(ticket: tickets.Ticket, tmp_path: Path, position: int) -> None:
    path = tmp_path / "peer-4.safetensors"
    tickets.store(ticket, path)
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(MissingFileError, match=r"peer-4\.safetensors"):
        tickets.load(path)


@pytest.mark.parametrize("name", ["absent.safetensors", "."])
def test_a_ticket_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingFileError, match="no ticket in"):
        tickets.load(tmp_path / name)


def test_a_ticket_whose_experiment_is_unknown_is_refused(ticket: tickets.Ticket, tmp_path: Path) -> None:
    path = tmp_path / "peer-4.safetensors"
    experiment = json.loads(ticket.experiment.model_dump_json())
    metadata = {
        "peer": "4",
        "shapes": json.dumps(ticket.shapes),
        "digest": ticket.mask.digest,
        "experiment": json.dumps(experiment),
    }
    tensors = {f"layer.{i}": np.frombuffer(bits.tobytes(), np.uint8) for i, bits in enumerate(ticket.mask.layers)}
    save_file(tensors, path, metadata)
    assert tickets.load(path) == ticket  # this much is enough
    save_file(tensors, path, metadata | {"experiment": json.dumps(experiment | {"surprise": 1})})
    with pytest.raises(MissingFileError, match="surprise"):
        tickets.load(path)
    for key in metadata:
        save_file(tensors, path, {other: value for other, value in metadata.items() if other != key})
        with pytest.raises(MissingFileError, match=key):
            tickets.load(path)


def test_somebody_elses_safetensors_file_is_no_ticket(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"layer.0": np.zeros(3, np.uint8)}, path)
    with pytest.raises(MissingFileError, match=r"weights\.safetensors"):
        tickets.load(path)


def test_a_ticket_that_cannot_be_written_says_where(ticket: tickets.Ticket, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write the ticket .*peer-4"):
        tickets.store(ticket, tmp_path / "file" / "peer-4.safetensors")


# --- what seldom happens --------------------------------------------------------------------------------------------


def test_signed_weights_are_never_zero() -> None:
    net = freeze(build("mlp", (3, 32, 32)), 14, "signed", 0.5)  # draws 0.5 exactly, once in 820,000
    assert all(weight.all() for weight in net.weights)
