"""``dslth doctor``: what a machine has, and whether a topology can run on it."""

import json
import socket

import pytest

from dslth import errors
from dslth.cli import doctor as module
from dslth.cli.options import Changes
from dslth.config import DataName, EngineName


def looked_at(file, engine=EngineName.LOCAL, **changes):
    return {found.what: found for found in module._file(str(file), Changes(**changes), engine)}


def test_a_topology_that_can_run_here_is_said_to(commands, topology_file):
    done = commands.run("dslth", "doctor", topology_file(), "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["exit_code"]) == (0, 0), done.stderr
    assert {found["exit_code"] for found in told["found"]} == {0}
    of = {found["what"] for found in told["found"]}
    data = {f"data: {name}" for name in DataName}
    assert of >= {"torch", "cores", "memory", "docker", "slurm", "ray", "file", "limits", "ports"} | data


def test_one_that_cannot_is_shown_with_the_reason_and_the_exit_code_of_its_run(commands, topology_file):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        file = topology_file(network={"addresses": ["127.0.0.1:1", address, "nowhere.invalid:2"], "security": "none"})
        done = commands.run("dslth", "doctor", file)
        assert done.returncode == errors.AddressError.exit_code
        assert "NO" in done.stdout
        assert address in done.stdout
        assert "cannot run here as it is" in done.stdout.splitlines()[-1]
        assert max(map(len, done.stdout.splitlines()[:-1])) <= 80


@pytest.mark.parametrize(
    ("settings", "what", "error"),
    [
        ({"model": {"nmae": "mlp"}}, "file", errors.ConfigError),
        ({"graph": {"kind": "edges", "peers": 4, "edges": [[0, 1], [2, 3]]}}, "file", errors.TopologyError),
        ({"peers": {9: {"batch": 3}}}, "limits", errors.UnknownPeerError),
        ({"data": {"partition": {"kind": "counts", "table": [[1, 2], [3, 4]]}}}, "limits", errors.ConfigError),
        ({"network": {"host": "peer-{id}.invalid", "port": 47100}}, "keys", errors.SecurityError),
        ({"network": {"host": "peer-{id}.invalid", "port": 47100}}, "ports", errors.AddressError),
    ],
    ids=["settings", "graph", "peer", "partition", "keys", "ports"],
)
def test_what_keeps_a_topology_from_running_is_named(topology_file, settings, what, error):
    found = looked_at(topology_file(**settings))
    assert found[what].exit_code == error.exit_code, found
    assert found[what].found


def test_a_file_that_is_not_there_is_named(tmp_path):
    (found,) = looked_at(tmp_path / "absent.yaml").values()
    assert found.exit_code == errors.MissingFileError.exit_code
    assert "absent.yaml" in found.found


def test_data_that_is_not_there_is_not_downloaded_and_what_needs_it_not_looked_at(topology_file, tmp_path):
    found = looked_at(topology_file(data={"name": "cifar10"}), data_dir=tmp_path)
    assert "not there" in found["data"].found
    assert "limits" not in found
    assert {one.exit_code for one in found.values()} == {0}


def test_peers_of_the_batched_engine_need_neither_ports_nor_memory_of_a_process_each(monkeypatch):
    monkeypatch.setattr("dslth.limits.available_memory", lambda: 2 * 10**9)
    assert looked_at("thousand")["limits"].exit_code == errors.LimitError.exit_code
    batched = looked_at("thousand", EngineName.BATCHED)
    assert batched["limits"].exit_code == 0
    assert not batched.keys() & {"memory", "keys", "ports"}
