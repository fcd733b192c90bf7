"""The command line: Ctrl-C at any moment, misspelt commands, full disks, unlike processors."""

import json
import os
import resource
import signal
import subprocess
import sys

import psutil
import pytest

from dslth.cli.guard import guarded
from dslth.errors import LimitError, MissingFileError
from dslth.runs.folder import RunFolder
from live import printed, processes_of, wait_for
from processes import ENV
from tap import free_ports


def one_line(done, code):
    assert done.returncode == code, (done.returncode, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("dslth: ")
    return lines[0]


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------

INTERRUPTED_IN = """
import os, signal, sys
def at(event, arguments):
    if event == "import" and arguments[0] == {module!r}:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(at)
sys.argv[0] = "dslth"
from dslth.__main__ import {command}
{command}()
"""


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("dslth.cli.bench", ["--version"]),
        ("typer", ["--version"]),
        ("rich.console", ["--version"]),
        ("numpy", ["--version"]),
        ("pydantic", ["run", "--nonsense"]),
        ("zmq", ["inspect", "nowhere"]),
        ("yaml", ["topology", "show", "ring"]),
        ("torch", ["bench", "comm"]),
        ("constriction", ["bench", "codec"]),
        ("msgpack", ["--id", "0", "-t", "ring"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_ctrl_c_in_the_midst_of_an_import_ends_the_command_without_a_word(module, line, tmp_path):
    code = INTERRUPTED_IN.format(module=module, command="peer_main" if line[0] == "--id" else "main")
    done = subprocess.run(
        [sys.executable, "-c", code, *line],
        cwd=tmp_path,
        env=ENV | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert not list(tmp_path.iterdir())


def test_a_peer_loads_nothing_that_only_others_need(commands, topology_file):
    file = topology_file(rounds=1, network={"base_port": free_ports(3)})
    line = ("dslth-peer", "-t", file, "--out", "run", "--quiet", "--id")
    others = [commands.start(*line, i) for i in (1, 2)]
    done = commands.run(*line, 0, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert [done.returncode, *(other.wait(timeout=60) for other in others)] == [0, 0, 0]
    imports = [said for said in done.stderr.splitlines() if said.startswith("import time:")]
    modules = {said.rpartition("|")[2].strip() for said in imports}
    assert {"dslth.peer", "torch", "zmq"} <= modules
    needless = {"networkx", "sklearn", "matplotlib", "pandas", "dslth.bench", "dslth.show.graph", "dslth.cli.run"}
    assert not needless & modules


def test_a_server_that_was_started_for_nothing_is_gone_with_its_files(commands, tmp_path):
    process = commands.start("dslth", "run", "-t", "nowhere.yaml", env={"TMPDIR": str(tmp_path)})
    server = wait_for(lambda: _server_of(process))
    process.communicate(timeout=60)
    assert process.returncode == MissingFileError.exit_code
    assert not server.is_running()
    assert not list(tmp_path.iterdir())


def _server_of(process):
    children = psutil.Process(process.pid).children()
    return next((child for child in children if "forkserver" in " ".join(child.cmdline())), None)


def test_ctrl_c_while_peers_are_started_ends_them_all(commands, topology_file):
    process = commands.start("dslth", "run", "-t", topology_file(rounds=100_000), "--out", "run")
    wait_for(lambda: psutil.Process(process.pid).children())
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert wait_for(lambda: not processes_of(process.pid)) is True


def test_an_interrupted_benchmark_keeps_the_rows_that_are_done(commands, topology_file, tmp_path):
    rows = "mce-auto,mce-alone,sgd-alone,dpsgd"
    process = commands.start("dslth", "bench", "comm", "-t", topology_file(), "--rows", rows, "--out", "out")
    assert process.stderr.readline().startswith("mce-auto: personal accuracy")
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 130, stderr
    assert stderr.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in stderr
    kept = json.loads((tmp_path / "out/comm.json").read_text())["rows"]
    assert 1 <= len(kept) < 4
    assert "mce-auto" in stdout
    assert (tmp_path / "out/bits.png").exists()


# --- what was typed wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run --nonsense", ["--nonsense", "dslth run --help"]),
        ("run", ["--topology", "dslth run --help"]),
        ("run -t", ["-t", "--help"]),
        ("run -t ring --rounds many", ["--rounds", "integer", "dslth run --help"]),
        ("run -t ring --rounds 0", ["--rounds", "dslth run --help"]),
        ("run -t ring --preset nonsense", ["--preset", "nonsense", "signed", "mce-pl"]),
        ("run -t ring --codec zip", ["--codec", "zip", "auto", "bitpack"]),
        ("run -t ring again", ["again", "dslth run --help"]),
        ("runn", ["runn", "run", "dslth --help"]),
        ("inspect", ["RUN", "dslth inspect --help"]),
        ("topology draw", ["draw", "dslth topology --help"]),
        ("bench comm --preset nonsense", ["--preset", "nonsense", "signed", "mce-pl", "dslth bench comm --help"]),
        ("bench codec --weights 3", ["--weights", "1000"]),
    ],
)
def test_a_misspelt_command_line_is_one_line_that_says_what_to_type(commands, line, words):
    done = commands.run("dslth", *line.split())
    said = one_line(done, 2)
    assert all(word in said for word in words), said
    assert done.stdout == ""


def test_a_misspelt_peer_is_one_line_too(commands):
    assert "--id" in one_line(commands.run("dslth-peer", "--id", "first", "-t", "ring"), 2)


@pytest.mark.parametrize("line", ["", "topology", "bench"])
def test_a_command_that_wants_another_word_shows_its_help(commands, line):
    done = commands.run("dslth", *line.split())
    assert done.returncode == 2
    assert done.stderr.startswith(f"Usage: dslth {line}".rstrip())
    assert "Commands:" in done.stderr


# --- too little memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["zeromq", "memory"])
def test_an_address_space_too_small_for_a_peer_is_named_before_anything_starts(
    commands, topology_file, tmp_path, transport
):
    def small():
        resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))

    line = ["run", "-t", topology_file(), "--out", "run", "--transport", transport]
    said = one_line(commands.run("dslth", *line, preexec_fn=small), 16)
    assert "400 MiB" in said
    assert "ulimit -v" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("files", [24, 30, 64])
def test_too_few_open_files_are_named_before_anything_starts(commands, topology_file, tmp_path, files):
    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    for command, line in (("dslth", ["run"]), ("dslth-peer", ["--id", 1]), ("dslth", ["bench", "soak"])):
        said = one_line(commands.run(command, *line, "-t", topology_file(), "--out", "run", preexec_fn=few), 16)
        assert f"{files} files open here" in said
        assert "ulimit -n" in said
        assert not (tmp_path / "run").exists()
    said = one_line(commands.run("dslth", "collect", topology_file(), "--out", "run", preexec_fn=few), 16)
    assert f"{files} files open here" in said


def test_the_limit_of_open_files_is_raised_where_the_system_lets(commands, topology_file):
    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))

    done = commands.run("dslth", "run", "-t", topology_file(), "--out", "run", "--json", preexec_fn=few)
    assert done.returncode == 0, done.stderr


def test_a_fork_server_that_dies_is_an_error_and_no_ctrl_c(commands, topology_file, tmp_path):
    (tmp_path / "torch.py").write_text("import os\nos._exit(1)  # as if memory ran out during its import\n")
    path = os.pathsep.join([str(tmp_path), ENV.get("PYTHONPATH", "")])
    done = commands.run("dslth", "run", "-t", topology_file(), "--out", "run", env={"PYTHONPATH": path})
    assert "the process that peers are forked from has ended" in one_line(done, 11)


@pytest.mark.parametrize(("error", "code"), [(MemoryError, 1), (KeyboardInterrupt, 130)])
def test_memory_that_ends_is_one_line(error, code, capsys):
    def command(standalone_mode):
        raise error

    with pytest.raises(SystemExit) as ended:
        guarded(command)
    assert ended.value.code == code
    assert ("not enough memory" in capsys.readouterr().err) == (error is MemoryError)


# --- where it cannot be written -------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["file", "file/run", "/proc/run", "/dev/full", "full", "/dev/full/run", 300 * "long"])
@pytest.mark.parametrize("command", ["run", "bench comm --rows mce-auto"])
def test_a_folder_that_cannot_be_written_is_named(commands, topology_file, tmp_path, command, out):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "of something").touch()
    line = one_line(commands.run("dslth", *command.split(), "-t", topology_file(), "--out", out), 12)
    assert f"--out {out}" in line


def test_runs_that_cannot_be_written_are_named(commands, topology_file, tmp_path):
    (tmp_path / "runs").touch()
    for line in ("run", "bench comm"):
        said = one_line(commands.run("dslth", *line.split(), "-t", topology_file()), 12)
        assert "runs/" in said
        assert "--out" in said


def test_a_full_disk_is_one_line(commands, topology_file):
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    line = one_line(commands.run("dslth", "run", "-t", topology_file(), "--out", "run", preexec_fn=full), 12)
    assert "run/topology.yaml" in line


@pytest.mark.parametrize("line", [["inspect"], ["inspect", "--json"]])
def test_a_result_that_cannot_be_printed_is_one_line(run_folder, line):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dslth", *line, run_folder], env=ENV, stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 12
    assert done.stderr == "dslth: cannot print the result: No space left on device\n"


# --- unlike processors ------------------------------------------------------------------------------------------------


def capability(**env):
    """What torch computes with in a process of this environment."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    return subprocess.run(
        [sys.executable, "-c", code], env=ENV | env, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_peers_on_unlike_processors_learn_together_and_the_run_says_so(commands, topology_file, tmp_path):
    plain = {"ATEN_CPU_CAPABILITY": "default"}
    mine, others = capability(), capability(**plain)
    if mine == others:
        pytest.skip("this processor has one way to compute only")
    file = topology_file(network={"base_port": free_ports(3)}, model={"name": "cnn"})
    line = ["-t", file, "--out", "mixed", "--json"]
    peers = [commands.start("dslth-peer", "--id", i, *line, env=plain if i == 1 else {}) for i in range(3)]
    for peer in peers:
        _, stderr = peer.communicate(timeout=120)
        assert peer.returncode == 0, stderr
    summary = printed(commands.run("dslth", "inspect", "mixed", "--json"))
    assert summary.processors == {mine: (0, 2), others: (1,)}
    assert [peer.refused for peer in summary.peers] == [{}, {}, {}]
    assert [peer.missing for peer in summary.peers] == [0, 0, 0]
    shown = commands.run("dslth", "inspect", "mixed").stdout
    assert f"note: peers ran on unlike processors ({mine}: 0, 2; {others}: 1)" in shown


def test_a_run_records_what_it_computed_with(commands, topology_file, tmp_path):
    done = commands.run("dslth", "run", "-t", topology_file(), "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "unlike" not in done.stdout
    assert RunFolder(tmp_path / "run").manifest()["machine"]["peers_by_capability"] == {capability(): [0, 1, 2]}


@pytest.mark.skipif(psutil.virtual_memory().total > 36 * 10**9, reason="this machine might have the memory")
def test_a_run_that_the_machine_has_no_memory_for_is_refused_before_it_starts(commands, topology_file, tmp_path):
    drawn = {"kind": "drawn", "classes_per_peer": 4, "samples": 140}
    experiment = {"preset": "mce-pl", "model": {"name": "cnn"}, "data": {"partition": drawn}}
    file = topology_file(graph={"kind": "full", "peers": 400}, **experiment)
    done = commands.run("dslth", "run", "-t", file, "--out", "run")
    assert "400 peers take about" in one_line(done, LimitError.exit_code)
    assert not (tmp_path / "run").exists()
