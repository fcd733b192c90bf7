"""Own data and own networks in whole runs, with real processes over real sockets."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.datasets import load_digits

from dslth.errors import ConfigError
from dslth.runs.folder import RunFolder
from dslth.runs.summary import PeerSummary
from live import digests, printed, summary_of
from tap import free_ports

NET = """
from torch import nn

def small(shape, classes, width=32):
    return nn.Sequential(nn.Linear(shape[0], width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, classes))
"""


@pytest.fixture
def own(tmp_path):
    """Digits as a table and as a file for each peer, with a network for them; returns what writes a topology file."""
    digits = load_digits()
    table = pd.DataFrame(digits.data, columns=[f"pixel {n}" for n in range(64)]).assign(
        digit=digits.target, writer=np.arange(len(digits.target)) // 40
    )
    table.to_parquet(tmp_path / "digits.parquet")
    for peer in range(3):
        mine = table[table.writer % 3 == peer]
        (tmp_path / f"peer-{peer}").mkdir()
        np.savez(tmp_path / f"peer-{peer}" / "mine.npz", x=mine.drop(columns=["digit", "writer"]), y=mine.digit)
    (tmp_path / "net.py").write_text(NET)

    def write(name, data, **keys):
        experiment = {
            "rounds": 6,
            "algorithm": {"density": 0.5},
            "data": data,
            "model": {"name": "./net.py:small", "options": {"width": 48}},
        }
        settings = {"graph": {"kind": "ring", "peers": 3}, "experiment": experiment} | keys
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(yaml.safe_dump(settings))
        return tmp_path / name

    return write


CLIENTS = {"path": "digits.parquet", "label": "digit", "client": "writer", "partition": {"kind": "clients"}}
EACH = {"path": "peer-{id}/mine.npz", "classes": 10}


@pytest.mark.parametrize("data", [CLIENTS, EACH], ids=["clients", "each its own"])
def test_masks_of_own_networks_on_own_data_are_the_same_however_they_run(data, own, commands, tmp_path):
    file = own("own.yaml", data)
    line = ("dslth", "run", "--json", "-t", file, "--out")
    real = printed(commands.run(*line, "real"))
    others = [("--transport", "memory"), ("--engine", "batched")]
    found = [printed(commands.run(*line, f"run-{n}", *options)) for n, options in enumerate(others)]
    assert all(digests(summary) == digests(real) for summary in found)
    assert real.accuracy_personal > 0.3  # ten classes
    assert (real.accuracy_global is None) == (data is EACH)
    again = commands.run("dslth", "run", "--json", "-t", tmp_path / "real" / "topology.yaml", "--out", "again")
    assert digests(printed(again)) == digests(real)


def test_a_peer_needs_nobody_elses_data(own, commands, tmp_path):
    together = printed(commands.run("dslth", "run", "--json", "-t", own("own.yaml", EACH), "--out", "together"))
    network, started = {"base_port": free_ports(3)}, []
    for peer in range(3):  # each on a machine of its own: other folders, no others' data
        home = f"home-{peer}"
        file = own(f"{home}/own.yaml", {"path": "private/{id}.npz", "classes": 10}, network=network)
        (file.parent / "private").mkdir()
        shutil.move(tmp_path / f"peer-{peer}" / "mine.npz", file.parent / "private" / f"{peer}.npz")
        shutil.copy(tmp_path / "net.py", file.parent)
        started.append(commands.start("dslth-peer", "--id", peer, "-t", file, "--out", home, "--json"))
    alone = {summary.id: summary for summary in (summary_of(process, PeerSummary) for process in started)}
    assert {peer: summary.mask_digest for peer, summary in alone.items()} == digests(together)
    assert all((summary.missing, summary.refused) == (0, {}) for summary in alone.values())


def test_peers_with_other_data_or_layers_under_the_same_name_do_not_play_together(own, commands, tmp_path):
    network, whole = {"base_port": free_ports(3)}, pd.read_parquet(tmp_path / "digits.parquet")
    settings = {"graph": {"kind": "line", "peers": 3}, "network": network}
    ends = []
    for peer, rows in enumerate([len(whole) - 1, len(whole), len(whole)]):
        file = own(f"home-{peer}/own.yaml", CLIENTS, **settings)
        whole.iloc[:rows].to_parquet(file.parent / "digits.parquet")
        net = NET if peer < 2 else NET.replace("nn.LayerNorm(width)", "nn.Identity()")
        (file.parent / "net.py").write_text(net)
        line = ("--id", peer, "-t", file, "--out", f"run-{peer}", "--join-timeout", "12")
        ends.append(commands.start("dslth-peer", *line))
    said = [process.communicate(timeout=120)[1] for process in ends]
    assert [process.returncode for process in ends] == [ends[0].returncode] * 3 != [0] * 3
    assert "data" in said[0]
    assert "layers" in said[2]


def test_an_own_ticket_predicts_with_its_own_classes_and_code(own, commands, tmp_path):
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    words = pd.read_parquet(tmp_path / "digits.parquet")
    words["digit"] = np.array(names)[words.digit]
    words.to_parquet(tmp_path / "digits.parquet")
    commands.run("dslth", "run", "-t", own("own.yaml", CLIENTS), "--out", "run")
    ticket = RunFolder(tmp_path / "run").ticket(1)

    def do(*line):
        return commands.run("dslth", "ticket", *line, "--model", tmp_path / "net.py:small")

    refused = commands.run("dslth", "ticket", "show", ticket)
    assert refused.returncode == ConfigError.exit_code
    assert "name it with --model, as in nets.py:small" in refused.stderr
    words.drop(columns=["digit", "writer"]).iloc[:20].to_csv(tmp_path / "rows.csv", index=False)
    found = json.loads(do("predict", ticket, "rows.csv", "--json").stdout)
    right = sum(row["class_name"] == word for row, word in zip(found, words.digit, strict=False))
    assert right >= 6  # chance gives two
    assert "of 359 predictions are the same" in do("export", ticket, "--onnx", "a.onnx", "--compact", "a.dslth").stdout
    shown = [do("show", form, "--json").stdout for form in ("a.dslth", ticket)]
    assert shown[0] == shown[1] != ""
    words.drop(columns="writer").iloc[:200].to_csv(tmp_path / "labelled.csv", index=False)
    assert "seven" in do("eval", ticket).stdout
    options = ("--csv", "labelled.csv", "--rounds", 20, "--out", "new.safetensors", "--json")
    taught = json.loads(do("apply", ticket, *options).stdout)
    assert taught["after"]["accuracy"] > taught["before"]["accuracy"]
