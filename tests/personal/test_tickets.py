"""What can be done with a ticket: its compact form, its figures, its predictions, its forms for other programs."""

import csv
import hashlib
import io
import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from torch import nn

from dslth import algorithm, config
from dslth.cli.main import app
from dslth.config import Inputs
from dslth.errors import ConfigError, DataError, DslthError, MissingFileError
from dslth.learner import Learner, threads
from dslth.learning import data, models, networks, supermask
from dslth.masks import BitMask
from dslth.personal import apply, compact, export, figures, inputs, nets, smaller
from dslth.runs import tickets
from dslth.runs.folder import RunFolder
from dslth.runs.summary import summarise
from dslth.runs.tickets import Ticket


def learned(preset="signed", model="mlp", data_name="digits", steps=1, **algorithm):
    """A ticket of a peer that learned alone."""
    given = {"preset": preset, "model": {"name": model}, "data": {"name": data_name}, "algorithm": algorithm}
    run = config.load("ring", {"experiment": given})
    learner = Learner(3, 10, run.experiment, run.device(3))
    for round_ in range(steps):
        learner.local_update(round_)
    return learner.result()[1], learner


def fresh(preset, model="cnn", name="cifar10", **algorithm):
    """A ticket of a random mask; needs no data."""
    given = {"preset": preset, "model": {"name": model}, "data": {"name": name}, "algorithm": algorithm}
    experiment = config.load("ring", {"experiment": given}).experiment
    net = networks.frozen(experiment, inputs.inputs_by_name(experiment.data, 10))
    shapes = tuple(tuple(w.shape) for w in net.weights)
    draws = np.random.default_rng(5)
    density = experiment.algorithm.density
    kept = [draws.random(shape) < (density.conv if len(shape) > 2 else density.linear) for shape in shapes]
    return Ticket(2, experiment, shapes, BitMask.from_arrays(kept))


def shown(shape, classes=10):
    return Inputs(shape=shape, number="uint8", classes=classes)


SHOWN = shown((1, 8, 8))
SMALL, LEARNER = learned()
PACKED = compact.pack(SMALL)


# --- the compact form -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "model"), [("signed", "mlp"), ("mce-pl", "cnn")])
def test_the_compact_form_is_the_same_ticket(preset, model, tmp_path):
    ticket, _ = learned(preset, model)
    size = compact.store(ticket, tmp_path / "compact")
    assert size == (tmp_path / "compact").stat().st_size < len(ticket.mask.pack()) + 2000
    assert compact.load(tmp_path / "compact") == ticket


def test_any_mask_of_the_papers_net_takes_at_most_130_kilobytes():
    ticket = fresh("mce-pl")
    assert sum(ticket.mask.sizes) == 1_227_328
    packed = compact.pack(ticket)
    assert len(packed) <= 130_000
    assert compact.unpack(packed) == ticket


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3), st.floats(0, 1))
def test_whatever_is_kept_comes_back(seeds, density):
    sizes = SMALL.mask.sizes
    layers = [np.random.default_rng(seed).random(n) < density for seed, n in zip(seeds, sizes, strict=True)]
    ticket = Ticket(SMALL.peer, SMALL.experiment, SMALL.shapes, BitMask.from_arrays(layers))
    assert compact.unpack(compact.pack(ticket)) == ticket


@given(st.data())
def test_a_damaged_compact_form_is_refused(drawn):
    kind = drawn.draw(st.sampled_from(["flip", "cut", "longer", "garbage"]))
    if kind == "flip":
        at = drawn.draw(st.integers(0, len(PACKED) - 1))
        content = PACKED[:at] + bytes([PACKED[at] ^ drawn.draw(st.integers(1, 255))]) + PACKED[at + 1 :]
    elif kind == "cut":
        content = PACKED[: drawn.draw(st.integers(0, len(PACKED) - 1))]
    elif kind == "longer":
        content = PACKED + drawn.draw(st.binary(min_size=1, max_size=9))
    else:
        content = drawn.draw(st.sampled_from([b"", b"DSLT", PACKED[:14]])) + drawn.draw(st.binary(max_size=200))
    with pytest.raises(ValueError):  # noqa: PT011  (each damage has its own words)
        compact.unpack(content)


def test_no_byte_can_be_another():
    for at in [*range(0, len(PACKED), 29), *range(len(PACKED) - 40, len(PACKED), 3)]:
        with pytest.raises(ValueError):  # noqa: PT011
            compact.unpack(PACKED[:at] + bytes([PACKED[at] ^ 1]) + PACKED[at + 1 :])


@settings(max_examples=30)
@given(st.binary(max_size=300))
def test_a_payload_that_no_encoder_gives_is_refused_or_is_another_mask(payload):
    start = compact.PREFIX.size
    head = PACKED[start : start + compact.PREFIX.unpack_from(PACKED)[3]]
    for codec in range(5):
        begin = compact.PREFIX.pack(compact.MAGIC, compact.VERSION, codec, len(head), len(payload)) + head
        with pytest.raises(ValueError):  # noqa: PT011
            compact.unpack(begin + payload + hashlib.sha256(begin).digest())


def test_a_file_that_is_no_ticket_is_named(tmp_path):
    for content in (b"", b"DSLT", PACKED[:-1], b"DSLT\x09" + PACKED[5:]):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(MissingFileError, match=r"no ticket in .*file: ."):
            compact.load(tmp_path / "file")
    with pytest.raises(MissingFileError, match="No such file"):
        compact.load(tmp_path / "nothing")


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "model"), [("signed", "cnn"), ("mce-pl", "mlp"), ("mce-pl", "resnet8")])
def test_the_plain_network_computes_what_the_peer_did(preset, model, tmp_path):
    ticket, learner = learned(preset, model)
    dataset = data.load(ticket.experiment.data)
    net = nets.dense(ticket)
    assert figures.own_accuracy(ticket, net, 10) == learner.evaluation()().personal
    images = dataset.test_images[:60]
    with threads(1):
        kept = algorithm.masked_weights(learner.net, [
            torch.from_numpy(mask).bool().reshape(shape)
            for mask, shape in zip(ticket.mask.arrays(), ticket.shapes, strict=True)
        ])  # fmt: skip
        ours = learner.net(kept, torch.from_numpy(images) / 127.5 - 1)
    assert np.abs(nets.logits(net, images) - ours.numpy()).max() < 1e-4

    export.store_dense(ticket, tmp_path / "dense.safetensors")
    state = load_file(tmp_path / "dense.safetensors")
    module = models.build(ticket.experiment.model, (1, 8, 8), 10)
    assert state.keys() == module.state_dict().keys()
    kept = [np.count_nonzero(state[name]) for name in learner.net.names]
    assert kept == list(ticket.mask.ones)


def test_figures_say_what_is_kept():
    ticket, _ = learned(min_filter_weights=120, density=0.5)
    found = figures.layers(ticket)
    assert [layer.kept for layer in found] == list(ticket.mask.ones)
    first = ticket.mask.arrays()[0].reshape(ticket.shapes[0])
    assert found[0].filters_kept == int(first.any(1).sum())
    assert 0 == found[0].filters_kept < found[1].filters_kept  # rows of 64 never keep more than 120


def test_accuracy_is_counted_class_by_class(monkeypatch):
    images = np.zeros((5, 1, 8, 8), np.uint8)
    shown = np.eye(10, dtype=np.float32)[[1, 1, 2, 3, 3]]
    monkeypatch.setattr(nets, "logits", lambda net, images: shown)
    found = figures.evaluate(None, images, np.array([1, 1, 1, 3, 9]))
    assert found.record() == {
        "images": 5,
        "accuracy": 0.6,
        "classes": [
            {"class": 1, "images": 3, "accuracy": 2 / 3},
            {"class": 3, "images": 1, "accuracy": 1.0},
            {"class": 9, "images": 1, "accuracy": 0.0},
        ],
    }


@pytest.mark.parametrize(("preset", "model"), [("mce-pl", "cnn"), ("signed", "resnet8")])
def test_onnxruntime_predicts_the_same(preset, model, tmp_path):
    pytest.importorskip("onnx", reason="needs the extra onnx: pip install 'dslth[onnx]'")
    pytest.importorskip("onnxruntime", reason="needs the extra onnx: pip install 'dslth[onnx]'")
    ticket, _ = learned(preset, model)
    net, images = nets.dense(ticket), export.test_images(ticket, None)
    export.store_onnx(net, SHOWN, tmp_path / "net.onnx")
    check = export.check_onnx(net, SHOWN, tmp_path / "net.onnx", images)
    assert check.same == check.images == 359
    assert check.difference < 1e-4
    other = nets.dense(learned(preset, model, steps=3)[0])
    assert export.check_onnx(other, SHOWN, tmp_path / "net.onnx", images).same < 359


@pytest.mark.parametrize("extra", ["onnx", "images"])
def test_a_missing_extra_is_named(extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, {"onnx": "onnx", "images": "PIL"}[extra], None)
    use = {
        "onnx": lambda: export.store_onnx(nets.dense(SMALL), SHOWN, tmp_path / "net.onnx"),
        "images": lambda: inputs.read_files([tmp_path / "a.png"], SHOWN),
    }[extra]
    with pytest.raises(DslthError, match=rf"pip install 'dslth\[{extra}\]'"):
        use()


# --- without dead filters -------------------------------------------------------------------------------------------


def with_dead_filters(preset, model, alive):
    ticket, draws = fresh(preset, model, "digits"), np.random.default_rng(3)
    layers = [mask.reshape(shape) == 1 for mask, shape in zip(ticket.mask.arrays(), ticket.shapes, strict=True)]
    for layer in layers:
        layer[draws.random(len(layer)) >= alive] = False
    return Ticket(ticket.peer, ticket.experiment, ticket.shapes, BitMask.from_arrays(layers))


@pytest.mark.parametrize("alive", [0.5, 0.0])
@pytest.mark.parametrize("preset", ["signed", "mce-pl"])
@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet8"])
def test_the_net_without_dead_filters_predicts_the_same(preset, model, alive):
    ticket = with_dead_filters(preset, model, alive)
    net, images = nets.dense(ticket), np.random.default_rng(4).integers(0, 256, (40, 1, 8, 8), np.uint8)
    small, shrinking = export.shrink(net, images)
    assert shrinking.check.same == 40
    assert shrinking.check.difference < 1e-5 * max(1, np.abs(nets.logits(net, images)).max())
    assert shrinking.parameters == (smaller.count(net), smaller.count(small))
    layers = [layer for layer in small.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    inner = layers[1:2] if model == "resnet8" else layers[:-1]  # the shortcut keeps the others' width
    kept = figures.layers(ticket)
    expected = kept[1:2] if model == "resnet8" else kept[:-1]
    assert all(len(layer.weight) <= max(1, k.filters_kept) for layer, k in zip(inner, expected, strict=True))


def test_the_smaller_net_is_written_and_checked(tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="needs the extra onnx: pip install 'dslth[onnx]'")
    ticket = with_dead_filters("signed", "cnn", 0.5)
    tickets.store(ticket, tmp_path / "dead.safetensors")
    line = ["export", tmp_path / "dead.safetensors", "--smaller", tmp_path / "s.onnx", "--onnx", tmp_path / "d.onnx"]
    said = typed(capsys, *line)
    assert said.count("359 of 359 predictions are the same") == 3
    assert "weights and biases 52,906, now " in said
    assert (tmp_path / "s.onnx").stat().st_size < 0.7 * (tmp_path / "d.onnx").stat().st_size


def test_a_ticket_whose_filters_all_live_is_as_small_as_it_gets():
    with pytest.raises(ConfigError, match="no filter of this ticket is dead"):
        smaller.without_dead_filters(nets.dense(SMALL))


# --- what it is tried on --------------------------------------------------------------------------------------------


def write_csv(path, rows, header=""):
    path.write_text(header + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def test_images_and_csv_rows_are_the_same_pictures(tmp_path):
    images = data.load(SMALL.experiment.data).test_images[:3]
    rows = write_csv(tmp_path / "rows.csv", images.reshape(3, -1), ",".join(f"p{i}" for i in range(64)) + "\n")
    assert (inputs.read_csv(rows, SHOWN) == images).all()
    Image.fromarray(images[0, 0]).resize((80, 80), Image.Resampling.NEAREST).convert("RGB").save(tmp_path / "a.png")
    assert inputs.read_files([tmp_path / "a.png"], SHOWN).shape == (1, 1, 8, 8)
    colours = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(colours).save(tmp_path / "c.png")
    assert (inputs.read_files([tmp_path / "c.png"], shown((3, 4, 4)))[0] == colours.transpose(2, 0, 1)).all()
    found = figures.predictions(SMALL, [rows, tmp_path / "a.png"])
    assert [row.name for row in found] == [*(f"{rows}:{number}" for number in (1, 2, 3)), str(tmp_path / "a.png")]
    assert [row.label for row in found[:3]] == nets.logits(nets.dense(SMALL), images).argmax(1).tolist()
    assert all(0.1 <= row.probability <= 1 for row in found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("1,2\n", "row 1: 2 columns; expected 4"),
        ("1,2,3,4\na,b,c,d\n", "row 2: expected whole numbers"),
        ("1,2,3,256\n", "row 1: expected bytes from 0 to 255"),
        ("1,2,3,-1\n", "from 0 to 255"),
        (f"1,2,3,{10**30}\n", "from 0 to 255"),
        ("1,2,3,\xff\n", "cannot be read"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_one_line_that_says_where(text, words, tmp_path):
    (tmp_path / "bad.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=words):
        inputs.read_csv(tmp_path / "bad.csv", shown((1, 2, 2)))


def test_own_labelled_rows_are_parted_into_training_and_testing(tmp_path):
    rows = write_csv(tmp_path / "own.csv", [[n, n, n, n, n % 3] for n in range(12)])
    found = inputs.read_labelled(rows, shown((1, 2, 2)))
    assert found.test_images[:, 0, 0, 0].tolist() == [4, 9]
    assert found.test_labels.tolist() == [1, 0]
    assert len(found.train_labels) == 10
    assert set(inputs.chosen(found, [1]).train_labels) == {1}
    with pytest.raises(ConfigError, match="no class 10; there are 0 to 9"):
        inputs.chosen(found, [10])
    with pytest.raises(DataError, match="no test image of 2"):
        inputs.chosen(found, [2])
    with pytest.raises(DataError, match="label 2; the ticket's network knows 0 to 1"):
        inputs.read_labelled(rows, shown((1, 2, 2), 2))


# --- taught more ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("min_filter_weights", [0, 30])
def test_learning_starts_from_the_tickets_own_mask(min_filter_weights):
    ticket, _ = learned(min_filter_weights=min_filter_weights, density=0.45)
    dataset = data.load(ticket.experiment.data)
    same = apply.fine_tuned(ticket, dataset.train_images[:1], dataset.train_labels[:1], 1, lr=1e-9)
    assert same == ticket
    signs = [torch.sign(s) for s in apply.scores_of(ticket)]
    first = supermask.initial_scores(nets.net_of(ticket), ticket.experiment.seed, "common")
    assert all(torch.equal(a, torch.sign(b)) for a, b in zip(signs, first, strict=True))


def test_a_ticket_learns_classes_that_it_did_not_know(capsys, tmp_path, run_folder):
    path = RunFolder(run_folder).ticket(0)
    line = ["apply", path, "--out", tmp_path / "new.safetensors", "--rounds", 15, "--json"]
    found = json.loads(typed(capsys, *line))
    assert found["after"]["accuracy"] > 0.8 > 0.6 > found["before"]["accuracy"]
    tried = json.loads(typed(capsys, "eval", tmp_path / "new.safetensors", "--json"))
    assert tried == found["after"]
    new, old = tickets.load(tmp_path / "new.safetensors"), tickets.load(path)
    assert (new.peer, new.experiment, new.mask.ones) == (old.peer, old.experiment, old.mask.ones)
    assert sum((new.mask ^ old.mask).ones) == round(found["flips"] * sum(new.mask.sizes)) > 0


def test_there_must_be_something_to_learn_from():
    with pytest.raises(DataError, match="no image to learn from"):
        apply.fine_tuned(SMALL, np.zeros((0, 1, 8, 8), np.uint8), np.zeros(0, np.int64), 1)


# --- the commands ---------------------------------------------------------------------------------------------------


def typed(capsys, *line):
    app(["ticket", *map(str, line)], standalone_mode=False)
    return capsys.readouterr().out


def test_the_commands_from_a_run_folder_to_predictions(run_folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = json.loads(typed(capsys, "show", run_folder, "--peer", 1, "--json"))
    mask = tickets.load(RunFolder(run_folder).ticket(1)).mask
    assert shown["digest"] == mask.digest
    assert [layer["kept"] for layer in shown["layers"]] == list(mask.ones)
    assert "weights kept" in typed(capsys, "show", RunFolder(run_folder).ticket(1))
    typed(capsys, "export", run_folder, "--peer", 1, "--compact", "one.ticket", "--dense", "one.safetensors")
    assert compact.load(tmp_path / "one.ticket").mask == mask
    tried = json.loads(typed(capsys, "eval", run_folder, "--peer", 1, "--json"))
    assert tried["own"] == summarise(RunFolder(run_folder)).peers[1].accuracy_personal
    assert json.loads(typed(capsys, "eval", "one.ticket", "--json")) == {k: v for k, v in tried.items() if k != "own"}
    images = data.load(SMALL.experiment.data).test_images[:2]
    write_csv(tmp_path / "rows.csv", images.reshape(2, -1))
    rows = list(csv.DictReader(io.StringIO(typed(capsys, "predict", "one.ticket", "rows.csv", "--as-csv"))))
    assert [row["image"] for row in rows] == ["rows.csv:1", "rows.csv:2"]


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        (["show", "nowhere"], MissingFileError, "no ticket in nowhere"),
        (["show", "{run}"], ConfigError, "--peer"),
        (["show", "{run}", "--peer", "9"], MissingFileError, "peer-9"),
        (["export", "{run}", "--peer", "0"], ConfigError, "--onnx"),
        (["predict", "{run}", "nothing.png", "--peer", "0"], DataError, "nothing.png: No such file"),
        (["eval", "{run}", "--peer", "0", "--data-dir", "absent"], MissingFileError, "--data-dir absent"),
        (["eval", "{run}", "--peer", "0", "--classes", "cat"], ConfigError, "--classes cat"),
    ],
)
def test_what_cannot_be_done_is_one_line(line, error, words, run_folder, capsys):
    with pytest.raises(error, match=words):
        typed(capsys, *(word.replace("{run}", str(run_folder)) for word in line))


def test_the_command_itself(commands, run_folder):
    done = commands.run("dslth", "ticket", "show", run_folder, "--peer", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ticket of peer 2: mlp for digits" in done.stdout
