"""Peers as actors of a Ray cluster of two nodes."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from containers import sh, wait_for
from dslth.runs.summary import Summary
from live import digests, printed, written
from processes import ENV

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

DSLTH = Path(sys.executable).with_name("dslth")


PROBE = """
import sys, time
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ray.init(address=sys.argv[1], log_to_driver=False)
deadline = time.monotonic() + 120
for node in [node["NodeID"] for node in ray.nodes()]:
    here = ray.remote(lambda: ray.get_runtime_context().get_node_id())
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    while True:
        try:
            assert ray.get(here.options(num_cpus=0, scheduling_strategy=place).remote()) == node
            break
        except ray.exceptions.RayError:
            if time.monotonic() > deadline:
                raise
assert len(ray.nodes()) == 2
"""
"""Waits until work can be placed on both nodes: the cluster knows of a new one before it does so."""


@pytest.fixture
def cluster():
    """A cluster of two nodes; both are this machine, each with processes of its own."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    probed = subprocess.run(
        [sys.executable, "-c", PROBE, made.address], env=ENV, capture_output=True, text=True, timeout=240
    )
    assert probed.returncode == 0, probed.stderr
    yield made
    made.shutdown()


def peers_of(node):
    """The processes of a node that are peers."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [child for child in raylet.children(recursive=True) if "_Peer" in " ".join(child.cmdline()[:1])]


def nodes(cluster):
    return [cluster.head_node, *cluster.worker_nodes]


def rounds(folder, peer):
    file = folder / "peers" / f"peer-{peer}.jsonl"
    return file.read_text().count('"event":"round"') if file.exists() else 0


def ended(process):
    stdout, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    return Summary.model_validate_json(stdout)


def test_ten_actors_on_two_nodes_learn_the_masks_of_a_local_run(cluster, processes, local_mesh, tmp_path):
    line = ["run", "-t", "mesh10", "--engine", "ray", "--address", cluster.address, "--join-timeout", 180, "--json"]
    run = processes(DSLTH, *line, "--out", tmp_path / "run")
    wait_for(lambda: rounds(tmp_path / "run", 0) >= 1 or run.poll() is not None)
    spread = [len(peers_of(node)) for node in nodes(cluster)]  # a node that is slow to start may be spared some
    assert sum(spread) == 10
    assert min(spread) >= 2
    summary = ended(run)
    assert digests(summary) == local_mesh
    assert written(tmp_path / "run") == summary


def test_peers_of_a_lost_node_go_on_elsewhere_from_their_checkpoints(cluster, processes, tmp_path):
    file = tmp_path / "four.yaml"
    file.write_text(
        "graph: {kind: full, peers: 4}\n"
        "experiment: {rounds: 400, deadline: none, evaluate_every: 50, model: {name: mlp}}\n"
    )
    line = ["run", "-t", file, "--engine", "ray", "--address", cluster.address, "--join-timeout", 180, "--json"]
    run = processes(DSLTH, *line, "--out", tmp_path / "run")
    wait_for(lambda: all(rounds(tmp_path / "run", peer) >= 6 for peer in range(4)) or run.poll() is not None)
    lost = cluster.worker_nodes and next(iter(cluster.worker_nodes))
    there = len(peers_of(lost))
    assert there in (1, 2, 3)
    cluster.remove_node(lost, allow_graceful=False)
    summary = ended(run)
    happened = {what: {e.peer for e in summary.happenings if e.what == what} for what in ("died", "restarted")}
    assert len(happened["died"]) == there
    assert happened["died"] == happened["restarted"]
    assert {e.peer for e in summary.happenings if e.what == "resumed"} == happened["died"]
    assert [peer.rounds_completed for peer in summary.peers] == [400] * 4
    local = sh(DSLTH, "run", "-t", file, "--transport", "memory", "--json", "--out", tmp_path / "local")
    assert digests(summary) == digests(printed(local))


def test_no_cluster_is_one_line(processes, tmp_path):
    run = processes(
        DSLTH, "run", "-t", "ring", "--engine", "ray", "--address", "127.0.0.1:9", "--out", tmp_path / "run"
    )
    _, stderr = run.communicate(timeout=120)
    assert run.returncode == 3, stderr
    assert "--address 127.0.0.1:9" in stderr
