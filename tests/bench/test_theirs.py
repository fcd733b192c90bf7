"""Figures of other people's code: checked, kept in one place, and marked as theirs wherever they are shown."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dslth.bench import theirs
from dslth.cli import others
from dslth.errors import ConfigError, MissingFileError, OutputError

FEDREP = {
    "method": "FedRep",
    "topology": "ring",
    "accuracy": {"2": 0.98, "1": 0.96},
    "message_bytes": None,
    "source": "PFLlib 1.0",
    "command": "python main.py -data digits -algo FedRep",
}


@pytest.fixture
def file(tmp_path):
    def write(*entries, name="theirs.json"):
        (tmp_path / name).write_text(json.dumps(entries))
        return tmp_path / name

    return write


def test_figures_are_read_and_told_with_their_source(file):
    (figures,) = theirs.read(file(FEDREP))
    assert figures.accuracy == {1: 0.96, 2: 0.98}
    assert figures.mean == pytest.approx(0.97)
    assert figures.name == "FedRep (theirs)"
    assert "told by others (PFLlib 1.0; python main.py -data digits -algo FedRep; seeds 1, 2)" in figures.note


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"method": "a | b"}, "0.method"),
        ({"accuracy": {}}, "0.accuracy"),
        ({"accuracy": {"1": 97.0}}, "0.accuracy.1"),
        ({"accuracy": {"-1": 0.97}}, "0.accuracy.-1"),
        ({"message_bytes": -1}, "0.message_bytes"),
        ({"message_bytes": 1.5}, "0.message_bytes"),
        ({"source": "two\nlines"}, "0.source"),
        ({"command": ""}, "0.command"),
        ({"bytes\n": 3}, r"'0.bytes\\n': unknown key"),
    ],
)
def test_an_error_is_one_line_that_names_its_place(file, change, named):
    with pytest.raises(ConfigError, match=named) as raised:
        theirs.read(file({**FEDREP, **change}))
    assert str(raised.value).isprintable()


def test_two_entries_of_one_method_are_refused(file):
    with pytest.raises(ConfigError, match="two of one"):
        theirs.read(file(FEDREP, FEDREP))


@given(st.binary(max_size=50) | st.sampled_from([b"[" * 100_000, b"{}", b'[{"method": NaN}]', b'[{"\xff": 1}]']))
def test_arbitrary_bytes_are_refused_in_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "arbitrary.json"
    path.write_bytes(content)
    if content.strip() != b"[]":
        with pytest.raises(ConfigError):
            theirs.read(path)


def test_what_is_imported_again_takes_the_place_of_what_was(file, tmp_path):
    results = tmp_path / "results"
    assert theirs.kept(results) == ()
    theirs.keep(theirs.read(file(FEDREP, {**FEDREP, "topology": "paper20"})), results)
    better = {**FEDREP, "accuracy": {"1": 0.99}, "message_bytes": 10**12}
    everything = theirs.keep(theirs.read(file(better)), results)
    assert [(each.topology, each.mean) for each in everything] == [("paper20", 0.97), ("ring", 0.99)]
    assert theirs.kept(results) == tuple(everything)


def test_only_figures_of_the_same_topology_are_shown(file, tmp_path):
    path = file(FEDREP, {**FEDREP, "topology": "paper20"})
    assert [each.topology for each in others.told(path, "topologies/ring.yaml")] == ["ring"]
    with pytest.raises(ConfigError, match="no figures of topology mesh10; there are those of paper20, ring"):
        others.told(path, "mesh10")


def test_a_file_or_folder_that_cannot_be_used_is_named(file, tmp_path):
    with pytest.raises(MissingFileError, match="nowhere"):
        theirs.read(tmp_path / "nowhere.json")
    with pytest.raises(MissingFileError, match="Is a directory"):
        theirs.read(tmp_path)
    path = file(FEDREP)
    with pytest.raises(OutputError, match="cannot write"):
        theirs.keep(theirs.read(path), path)
