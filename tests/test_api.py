"""dslth from Python: in this process, in scripts with and without a guard, and typed in."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import dslth
from dslth.errors import ConfigError, DataError, MissingFileError, OutputError
from live import rounds_done, wait_for
from processes import ENV

DIGITS = load_digits()
QUICK = {"rounds": 6, "algorithm": {"density": 0.5}}

NETS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, shape, classes):
        super().__init__(nn.Linear(shape[0], 48), nn.LayerNorm(48), nn.ReLU(), nn.Linear(48, classes))
"""


def script(folder, text, **options):
    (folder / "script.py").write_text(text)
    line = [sys.executable, "script.py"]
    return subprocess.run(line, cwd=folder, env=ENV, capture_output=True, text=True, timeout=120, **options)


def test_what_is_exported_is_a_contract():
    assert dslth.__all__ == ["DslthError", "Model", "Run", "Topology", "__version__", "load", "run"]
    assert dir(dslth) == dslth.__all__
    assert all(getattr(dslth, name).__doc__ for name in dslth.__all__)
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        dslth.train  # noqa: B018


def test_importing_it_imports_neither_torch_nor_pandas():
    code = "import sys, dslth; dslth.run; print(sorted({'torch', 'pandas', 'matplotlib'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    seen = []
    out = tmp_path_factory.mktemp("api") / "run"
    run = dslth.run("ring", out=out, on_round=seen.append, model="mlp", transport="memory", rounds=4, evaluate_every=2)
    return run, seen


def test_tables_hold_every_round_and_link(ran):
    run, seen = ran
    assert len(run.rounds) == len(seen) == 40
    assert run.rounds[["peer", "round"]].to_numpy().tolist() == [[p, r] for p in range(10) for r in range(4)]
    known = {(report.peer, report.round): report for report in seen}
    for row in run.rounds.itertuples():
        report = known[row.peer, row.round]
        assert (row.mask_digest, row.loss) == (report.mask_digest, report.loss)
        assert np.isnan(row.accuracy_personal) == (report.accuracy_personal is None) == (row.round % 2 == 0)
    links = run.links
    assert len(links) == 4 * 20
    assert links[["peer", "round", "neighbour"]].drop_duplicates().shape == (80, 3)
    totals = {peer.id: peer.payload_bytes_sent for peer in run.summary.peers}
    assert links.groupby("peer").payload_sent.sum().to_dict() == totals
    assert run.happenings.empty
    assert repr(run).startswith(f"<Run {run.folder}: 10 peers, 4 rounds, accuracy ")


def test_a_folder_is_the_same_run(ran):
    run, _ = ran
    again = dslth.load(run.folder)
    pd.testing.assert_frame_equal(again.rounds, run.rounds)
    assert (again.summary, again.topology) == (run.summary, run.topology)
    assert again.settings.experiment.rounds == 4
    with pytest.raises(MissingFileError):
        dslth.load(run.folder / "peers")


def test_a_ticket_predicts_as_its_run_says(ran, tmp_path):
    run, _ = ran
    assert sorted(run.tickets) == list(range(10))
    model, images = run.tickets[3], (DIGITS.images * 255 // 16).astype(np.uint8)[:, None]
    logits = model.logits(images)
    assert (logits.shape, logits.dtype) == ((1797, 10), np.float32)
    assert (model.predict(images) == logits.argmax(1)).all()
    assert model.accuracy(images, DIGITS.target) == pytest.approx((logits.argmax(1) == DIGITS.target).mean())
    assert torch.equal(model.module(torch.from_numpy(images)), torch.from_numpy(logits))
    size = model.compact(tmp_path / "small.dslth")
    assert size == (tmp_path / "small.dslth").stat().st_size < 40_000
    assert (dslth.Model(str(tmp_path / "small.dslth")).logits(images) == logits).all()
    with pytest.raises(DataError, match=r"shape \(7, 7\); this network is shown uint8 1x8x8, 10 classes"):
        model.predict(np.zeros((1, 7, 7), np.uint8))
    model.onnx(tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").stat().st_size > 100_000


def test_runs_are_drawn_side_by_side(ran, tmp_path):
    run, _ = ran
    figure = run.plot(dslth.load(run.folder))
    by_round, by_bytes = figure.axes
    assert [len(axes.lines) for axes in (by_round, by_bytes)] == [2, 2]
    x, y = by_round.lines[0].get_data()
    assert list(x) == [2, 4]
    assert y[-1] == pytest.approx(100 * run.summary.accuracy_personal, abs=1e-3)
    assert by_bytes.lines[0].get_xdata()[-1] == pytest.approx(run.links.message_sent.sum() / 1e3)
    figure.savefig(tmp_path / "run.png")


@pytest.mark.parametrize("kind", ["networkx", "Topology", "keys", "file"])
def test_a_graph_may_be_given_in_any_form(kind, tmp_path):
    graph = nx.relabel_nodes(nx.path_graph(3), {0: "c", 1: "a", 2: "b"})
    (tmp_path / "t.yaml").write_text("graph: {kind: line, peers: 3}")
    given = {
        "networkx": graph,
        "Topology": dslth.Topology.from_networkx(graph),
        "keys": {"graph": {"kind": "line", "peers": 3}, "peers": {1: {"batch": 100}}},
        "file": tmp_path / "t.yaml",
    }
    run = dslth.run(given[kind], model="mlp", rounds=1, transport="memory", out=tmp_path / "run")
    assert (run.topology.peers, run.topology.edges) == (3, ((0, 1), (1, 2)))
    assert run.settings.device(1).batch == (100 if kind == "keys" else None)


@pytest.mark.parametrize("engine", ["local", "batched"])
def test_own_networks_learn_from_arrays_and_tables(engine, tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)  # that of a test before
    Net = importlib.import_module("nets").Net  # noqa: N806

    table = pd.DataFrame(DIGITS.data).assign(label=DIGITS.target)
    names = np.array(list("abcdefghij"))
    arrays = DIGITS.data[:1500], names[DIGITS.target[:1500]], DIGITS.data[1500:], names[DIGITS.target[1500:]]
    line = {"topology": {"graph": {"kind": "ring", "peers": 3}}, "model": Net, "engine": engine, **QUICK}
    runs = [dslth.run(data=data, out=tmp_path / str(n), **line) for n, data in enumerate((table, arrays))]
    assert all(run.summary.accuracy_personal > 0.5 for run in runs)
    first, named = (run.tickets[1] for run in runs)
    assert first.accuracy(DIGITS.data, DIGITS.target) > 0.2  # its own classes are four of ten
    assert named.inputs.names == tuple("abcdefghij")
    assert set(named.predict(DIGITS.data[:50])) <= set("abcdefghij")
    loaded = dslth.load(tmp_path / "1", "nets.py:Net")
    with pytest.raises(ConfigError, match=r"there is no file .*nets\.py"):
        loaded.tickets[1].predict(DIGITS.data[:5])
    for code in (Net, f"{tmp_path / 'nets.py'}:Net"):
        again = dslth.load(tmp_path / "1", code).tickets[1]
        assert (again.predict(DIGITS.data) == named.predict(DIGITS.data)).all()
    with pytest.raises(ConfigError, match="never run on the word of a ticket"):
        dslth.load(tmp_path / "1").tickets[1].predict(DIGITS.data[:5])


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"model": lambda: None}, ConfigError, "has no name that peers can import"),
        ({"model": "alexnet"}, ConfigError, "expected mlp, cnn, resnet8, or own code"),
        ({"data": "no/such.csv"}, DataError, "there is no"),
        ({"data": 3}, DataError, "int; expected a name, a path"),
        ({"data": pd.DataFrame({"x": [1]})}, DataError, "no column 'label'"),
        ({"engine": "ray"}, ConfigError, "dslth run --engine ray"),
        ({"engine": "lokal"}, ConfigError, "engine: 'lokal'; there are local, ray, batched"),
        ({"transport": "tcp"}, ConfigError, "transport: 'tcp'; there are zeromq, memory"),
        ({"on_round": 3}, ConfigError, "on_round: int"),
        ({"topology": 3}, ConfigError, "topology: int"),
        ({"topology": nx.DiGraph([(0, 1)])}, ConfigError, "a directed graph"),
        ({"data": pd.DataFrame({"city": ["Rome"], "label": [1]})}, DataError, "column 'city' holds no numbers"),
        ({"data": (np.ones((9, 2)), np.ones(8))}, DataError, "expected x"),
        ({"rouns": 3}, ConfigError, "rouns: unknown key"),
        ({"rounds": 0}, ConfigError, "experiment.rounds"),
        ({"out": __file__}, OutputError, "is not a folder"),
        ({"topology": nx.Graph([(0, 1), (2, 3)])}, dslth.DslthError, "in one piece|connected|pieces"),
    ],
)
def test_what_does_not_fit_is_an_error_and_not_an_exit(given, error, words, tmp_path):
    with pytest.raises(error, match=words):
        dslth.run(**({"topology": "ring", "model": "mlp", "out": tmp_path / "run"} | given))
    assert not (tmp_path / "run").exists()  # the next try may have it


def test_an_error_in_the_callback_ends_the_run(tmp_path):
    def on_round(report):
        if report.round == 2:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        dslth.run("ring", model="mlp", rounds=10_000, transport="memory", on_round=on_round, out=tmp_path / "run")
    assert len(dslth.load(tmp_path / "run").summary.peers) >= 1


# --- scripts --------------------------------------------------------------------------------------------------------

RUN = """
import dslth
run = dslth.run({"graph": {"kind": "ring", "peers": 3}}, model=MODEL, rounds=2, out="run", join_timeout=60)
print(len(run.rounds), sorted(run.tickets))
"""


def test_a_script_needs_no_guard_and_peers_do_not_run_it(tmp_path):
    done = script(tmp_path, "print('begin')" + RUN.replace("MODEL", "'mlp'"))
    assert (done.stdout, done.stderr) == ("begin\n6 [0, 1, 2]\n", "")


def test_a_network_in_the_script_itself_needs_a_guard(tmp_path):
    net = "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    bare = net + RUN.replace("MODEL", "net")
    done = script(tmp_path, bare)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"ConfigError: .*put the call under 'if __name__ == \"__main__\":'", last)
    guarded = net + "if __name__ == '__main__':" + RUN.replace("MODEL", "net").replace("\n", "\n    ")
    done = script(tmp_path, guarded)
    assert (done.stdout, done.stderr) == ("6 [0, 1, 2]\n", "")


def test_typed_in_it_works_but_not_with_a_network_that_is_typed_in_too(tmp_path):
    def typed_in(text):
        line = [sys.executable, "-"]
        return subprocess.run(line, cwd=tmp_path, env=ENV, input=text, capture_output=True, text=True, timeout=120)

    done = typed_in(RUN.replace("MODEL", "'mlp'"))
    assert (done.stdout, done.stderr) == ("6 [0, 1, 2]\n", "")
    done = typed_in("from torch import nn\nclass Net(nn.Linear): pass\n" + RUN.replace("MODEL", "Net"))
    assert "typed into a notebook or a prompt" in done.stderr


def test_ctrl_c_ends_the_peers_and_can_be_resumed(tmp_path, commands):
    text = RUN.replace("MODEL", "'mlp'").replace("rounds=2", "rounds=100000, checkpoint_every=1")
    (tmp_path / "script.py").write_text(text)
    process = subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, env=ENV, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_for(lambda: rounds_done(tmp_path / "run", 3) > 0)
        os.kill(process.pid, signal.SIGINT)
        stderr = process.communicate(timeout=60)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert stderr.strip().splitlines()[-1] == "KeyboardInterrupt: what was measured is in run"
    done = max(peer.rounds_completed for peer in dslth.load(tmp_path / "run").summary.peers)
    resumed = commands.run("dslth", "run", "--resume", "run", "--json", "--rounds", done + 3)
    assert json.loads(resumed.stdout)["rounds"] == done + 3, resumed.stderr


class Pairs(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, number):
        return self.x[number], self.y[number]


def test_torch_data_sets_are_the_same_as_their_arrays(tmp_path):
    x, y = DIGITS.data.astype(np.float32), DIGITS.target
    test = x[:200], y[:200]

    def learned(name, data):
        ran = dslth.run("ring", data=data, model="mlp", transport="memory", out=tmp_path / name, **QUICK)
        return ran.rounds.mask_digest.tolist()

    as_arrays = learned("arrays", (x[200:], y[200:], *test))
    parts = Pairs(torch.tensor(x[200:]), torch.tensor(y[200:])), Pairs(*test)
    assert learned("sets", parts) == as_arrays
    images = Pairs([Image.fromarray(image) for image in DIGITS.images.astype(np.uint8)], y)
    one = dslth.run("ring", data=images, model="mlp", transport="memory", out=tmp_path / "images", rounds=1)
    assert one.tickets[0].inputs.shape == (8, 8)
    colours = Pairs([Image.fromarray(np.stack([image] * 3, -1)) for image in DIGITS.images.astype(np.uint8)], y)
    one = dslth.run("ring", data=colours, model="mlp", transport="memory", out=tmp_path / "colours", rounds=1)
    assert one.tickets[0].inputs.shape == (3, 8, 8)
    with pytest.raises(DataError, match="Pairs: expected a length, and pairs"):
        dslth.run("ring", data=Pairs([np.zeros(3), np.zeros(4)], [0, 1]), out=tmp_path / "bad")


def test_sinks_progress_and_report_are_those_of_the_command(tmp_path, capsys):
    ran = dslth.run(
        "ring", model="mlp", transport="memory", rounds=2, out=tmp_path / "run",
        sinks=["parquet"], progress=True, report=True,
    )  # fmt: skip
    assert len(pd.read_parquet(ran.folder / "rounds.parquet")) == 20
    assert "round 2/2, personal accuracy" in capsys.readouterr().err
    assert (ran.folder / "report.html").stat().st_size > 500_000
    with pytest.raises(ConfigError, match="there is none of that name"):
        dslth.run("ring", sinks=["nothing"], out=tmp_path / "other")
