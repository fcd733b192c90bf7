"""Topology files to begin with: written, listed, described, completed by the shell."""

import json

import pytest
import yaml
from jsonschema import Draft202012Validator

from dslth import __version__, config, topology
from dslth.cli import files
from dslth.config import FileKind
from dslth.engines.supervisor import run_local
from dslth.errors import ConfigError, OutputError
from dslth.runs.folder import RunFolder


def test_a_new_file_runs_as_it_is_and_is_never_overwritten(commands, tmp_path):
    done = commands.run("dslth", "init", "mine.yaml", "--graph", "line", "--peers", 3, "--schema")
    assert done.returncode == 0, done.stderr
    assert "dslth run -t mine.yaml" in done.stderr
    text = (tmp_path / "mine.yaml").read_text()
    name = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert Draft202012Validator(json.loads((tmp_path / name).read_text())).is_valid(yaml.safe_load(text))
    again = commands.run("dslth", "init", "mine.yaml")
    assert again.returncode == OutputError.exit_code
    assert "mine.yaml exists already" in again.stderr
    assert (tmp_path / "mine.yaml").read_text() == text
    run = config.load(tmp_path / "mine.yaml", {"experiment": {"rounds": 1}})
    ran = run_local(run, topology.build(run.graph, 1), RunFolder(tmp_path / "run"), transport="memory").measured()
    assert (len(ran.peers), ran.rounds) == (3, 1)


def test_a_graph_that_cannot_be_is_refused_and_nothing_is_written(commands, tmp_path):
    done = commands.run("dslth", "init", "mine.yaml", "--graph", "torus", "--peers", 7)
    assert done.returncode == ConfigError.exit_code
    assert "--graph torus --peers 7" in done.stderr
    assert not list(tmp_path.iterdir())
    absent = commands.run("dslth", "init", "nowhere/mine.yaml")
    assert absent.returncode == OutputError.exit_code
    assert "nowhere/mine.yaml" in absent.stderr


def test_the_files_that_come_with_dslth_are_listed_a_line_each(commands):
    shown, told = commands.run("dslth", "topologies"), commands.run("dslth", "topologies", "--json")
    rows = {row["name"]: row for row in json.loads(told.stdout)}
    assert set(rows) == {file.stem for file in config.shipped("topologies").glob("*.yaml")}
    assert rows["torus"] | {"graph": "torus", "peers": 12, "links": 24, "data": "digits"} == rows["torus"]
    assert max(map(len, shown.stdout.splitlines())) <= 80
    for name, row in rows.items():
        (line,) = [line.split() for line in shown.stdout.splitlines() if line.split()[:1] == [name]]
        assert line == [str(value) for value in row.values()]


@pytest.mark.parametrize(("words", "key"), [([], "graph"), (["profile"], "batch")])
def test_the_schema_is_printed(commands, words, key):
    schema = json.loads(commands.run("dslth", "schema", *words).stdout)
    Draft202012Validator.check_schema(schema)
    assert key in schema["properties"]


@pytest.mark.parametrize("folder", ["experiments", "studies"])
def test_the_schema_accepts_shipped_experiments_and_studies_and_refuses_misspelt_keys(folder):
    kind = {"experiments": FileKind.EXPERIMENT, "studies": FileKind.STUDY}[folder]
    accepts = Draft202012Validator(files._schema(kind))
    shipped = list(config.shipped(folder).glob("*.yaml"))
    assert shipped
    for file in shipped:
        tree = json.loads(json.dumps(yaml.safe_load(file.read_text())))
        accepts.validate(tree)
        for key in tree:
            wrong = {f"{other}x" if other == key else other: value for other, value in tree.items()}
            assert not accepts.is_valid(wrong), key


@pytest.mark.parametrize("command", ["dslth", "dslth-peer"])
def test_both_programs_say_their_version(commands, command):
    done = commands.run(command, "--version")
    assert (done.returncode, done.stdout) == (0, f"dslth {__version__}\n")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("dslth to", ["topologies", "topology"]),
        ("dslth run --topology sm", ["small-world", "small.yaml"]),
        ("dslth run --topology sub/", ["sub/own.yaml"]),
        ("dslth-peer --topology paper", ["paper20"]),
        ("dslth init x --graph to", ["torus"]),
    ],
)
def test_a_shell_completes_commands_and_topologies(commands, tmp_path, line, offered):
    (tmp_path / "sub").mkdir()
    for name in ("small.yaml", "smaller.txt", "sub/own.yaml"):
        (tmp_path / name).touch()
    program = line.split()[0]
    asked = {f"_{program.replace('-', '_').upper()}_COMPLETE": "complete_bash"}
    done = commands.run(program, env=asked | {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)})
    assert (done.returncode, done.stdout.split()) == (0, offered), done.stderr
