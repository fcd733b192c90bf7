"""Pictures of runs: their rows are the run's figures, all can be drawn, and nothing gets out of its place."""

import json
import re
import threading
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import vl_convert

from dslth import config, topology
from dslth.engines.supervisor import run_local
from dslth.errors import AddressError, MissingFileError, OutputError
from dslth.report import figures, page, pictures
from dslth.report.figures import Opened
from dslth.report.live import serve
from dslth.runs.folder import RunFolder
from live import printed

EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="session")
def two(tmp_path_factory):
    """Two runs of five peers, one of them with a device whose name is an attack."""
    folders = []
    for name, seed in (("one", 1), (f"two {EVIL.replace('/', '')}", 2)):
        folder = tmp_path_factory.mktemp("reported") / name
        file = folder.parent / "t.yaml"
        experiment = {"rounds": 4, "seed": seed, "model": {"name": "mlp"}, "evaluate_every": 1}
        keys = {"graph": {"kind": "star", "peers": 5}, "experiment": experiment, "peers": {2: {"kind": EVIL}}}
        file.write_text(json.dumps(keys))
        run = config.load(file)
        run_local(run, topology.build(run.graph, 1), RunFolder(folder), transport="memory")
        folders.append(folder)
    return folders


def test_the_rows_of_pictures_are_the_figures_of_the_run(two):
    run = Opened.of(two[0])
    summary = run.summary
    assert run.means()[-1]["mean"] == pytest.approx(100 * summary.accuracy_personal, abs=1e-3)
    last = {row["peer"]: row["accuracy"] for row in run.rounds() if row["round"] == 4}
    assert last == {peer.id: pytest.approx(100 * peer.accuracy_personal, abs=1e-3) for peer in summary.peers}
    assert sum(row["messages, kB"] for row in run.links()) == pytest.approx(summary.message_bytes_sent / 1e3)
    assert len(run.links()) == 4
    assert {row["phase"] for row in run.seconds()} == {
        "compute", "encode", "wait", "decode", "fine-tune", "evaluate",
    }  # fmt: skip
    first = [row for row in run.rounds() if row["round"] == 1]
    assert all(row["entropy"] is None for row in first)  # nothing to flip from
    later = [row for row in run.rounds() if row["round"] > 1]
    assert all(0 < row["entropy"] <= 1 for row in later)


def test_masks_are_compared_weight_by_weight(two):
    masks = Opened.of(two[0]).masks()
    rows = {(row["peer"], row["other"]): row["alike"] for row in figures.similarities(masks)}
    bits = {peer: np.unpackbits(np.frombuffer(t.mask.pack(), np.uint8)) for peer, t in masks.items()}
    flat = {peer: np.concatenate([layer.ravel() for layer in t.mask.arrays()]) for peer, t in masks.items()}
    assert len(bits) == 5
    for a in range(5):
        for b in range(5):
            assert rows[a, b] == rows[b, a] == pytest.approx(100 * (flat[a] == flat[b]).mean(), abs=0.01)
    kept = {(row["peer"], row["layer"]): row["weights kept, %"] for row in figures.layers(masks)}
    assert kept[0, "0: 256x64"] == pytest.approx(90, abs=0.1)


def test_every_picture_can_be_drawn(two):
    runs = [Opened.of(folder) for folder in two]
    made = [*pictures.of_run(runs[0]), *pictures.compared(runs)]
    titles = [picture.title for picture in made]
    assert titles == [
        "Graph", "Accuracy", "Loss", "Accuracy against bytes", "Bits per weight", "Alike masks", "Layers",
        "Where the time went", "Accuracy by round", "Accuracy against bytes",
    ]  # fmt: skip
    for picture in made:
        drawn = vl_convert.vegalite_to_svg(json.loads(json.dumps(picture.whole())), vl_version=page.VERSION)
        assert drawn.count("<path") > 5, picture.title
        assert "NaN" not in drawn, picture.title
        assert "undefined" not in drawn, picture.title


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_nothing_in_a_run_becomes_part_of_the_page(two):
    text = page.page(page.content(two))
    tags = Reader(text).tags
    assert not [tag for tag, _ in tags if tag == "img"]
    assert not [attributes for _, attributes in tags if any(name.startswith("on") for name in attributes)]
    assert [tag for tag, _ in tags].count("script") == 3
    assert EVIL not in text
    held = re.search(r'<script type="application/json" id="shown">(.*?)</script>', text, re.DOTALL)[1]
    peers = json.loads(held)["sections"][1]["pictures"][0]["table"]
    assert EVIL in [row[peers["columns"].index("device")] for row in peers["rows"]]
    fetched = [attributes for tag, attributes in tags if {"src", "href"} & attributes.keys()]
    assert fetched == []  # it opens offline


def test_a_run_that_goes_on_is_shown_as_far_as_it_is(two, tmp_path):
    part = tmp_path / "part"
    (part / "peers").mkdir(parents=True)
    (part / "topology.yaml").write_bytes((two[0] / "topology.yaml").read_bytes())
    with pytest.raises(MissingFileError):
        page.content([part])
    whole = (two[0] / "peers" / "peer-1.jsonl").read_text().splitlines()
    (part / "peers" / "peer-1.jsonl").write_text("\n".join(whole[:2]) + '\n{"event":"rou')
    (shown,) = page.content([part])["sections"]
    titles = [picture["title"] for picture in shown["pictures"]]
    assert "Alike masks" not in titles
    assert "Accuracy" in titles
    page.page(page.content([part]))


def test_files_for_papers(two, tmp_path):
    for name, begins in (("a.png", b"\x89PNG"), ("a.svg", b"<svg"), ("a.pdf", b"%PDF")):
        for by_bytes in (False, True):
            size = page.picture_file(tmp_path / name, two, by_bytes=by_bytes)
            content = (tmp_path / name).read_bytes()
            assert content.startswith(begins)
            assert len(content) == size
    with pytest.raises(OutputError, match=r"\.png, \.svg or \.pdf"):
        page.picture_file(tmp_path / "a.jpg", two, by_bytes=False)
    with pytest.raises(OutputError, match="cannot write"):
        page.picture_file(tmp_path / "a.png" / "b.png", two, by_bytes=False)


def test_a_live_page_is_read_anew_each_time(two):
    with serve(two[:1], "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            root = f"http://127.0.0.1:{server.server_port}"
            with urllib.request.urlopen(f"{root}/", timeout=30) as answer:
                assert '"live":true' in answer.read().decode()
            with urllib.request.urlopen(f"{root}/shown.json", timeout=30) as answer:
                assert json.load(answer)["title"] == "one"
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{root}/../../etc/passwd", timeout=30)
            elsewhere = urllib.request.Request(f"{root}/", headers={"Host": "evil.example:80"})
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(elsewhere, timeout=30)
            with pytest.raises(AddressError, match="in use"):
                serve(two[:1], "127.0.0.1", server.server_port)
        finally:
            server.shutdown()
            thread.join()


def test_the_commands_write_what_they_say(two, commands, tmp_path):
    done = commands.run("dslth", "report", *two, "--out", "page.html")
    size = (tmp_path / "page.html").stat().st_size
    assert done.stdout.split() == ["page.html:", f"{size:,}", "bytes"]
    assert size < 1_500_000
    assert commands.run("dslth", "plot", *two, "--bytes", "--out", "a.svg").returncode == 0
    assert commands.run("dslth", "report", tmp_path).returncode == MissingFileError.exit_code
    wrong = commands.run("dslth", "report", two[0], "--live", "--listen", "8000")
    assert "expected HOST:PORT" in wrong.stderr
    run = commands.run("dslth", "run", "-t", "ring", "--rounds", 2, "--out", "run", "--report", "--json")
    assert printed(run).rounds == 2
    assert "<title>run" in Path(tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_run_leaves_its_page_unless_it_is_large_or_told_not_to(commands, tmp_path):
    line = ("dslth", "run", "-t", "ring", "--engine", "batched", "--rounds", "1", "--set", "model.name=mlp")
    drawn = commands.run(*line, "--out", "drawn")
    assert "pictures: drawn/report.html" in drawn.stdout
    for name, options in (("not", ("--no-report",)), ("large", ("--set", "graph.peers=201"))):
        told = commands.run(*line, *options, "--set", "data.partition={kind: iid}", "--out", name)
        assert told.returncode == 0, told.stderr
        assert "pictures" not in told.stdout
        assert not (tmp_path / name / "report.html").exists()
