"""The files for containers and clusters, and the collector of reports; no engine is needed."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from dslth import config, keys
from dslth.deploy import place, slurm
from dslth.deploy.alive import takes_callers
from dslth.deploy.compose import compose
from dslth.engines.inbox import Inbox, Reporter
from dslth.errors import ConfigError, UnknownPeerError
from dslth.runs.events import Finished, Noticed
from dslth.runs.summary import Summary
from live import digests, printed, written
from pushing import pushing
from tap import free_ports

ROOT = Path(__file__).parents[2]


# --- compose --------------------------------------------------------------------------------------------------------


def test_the_shipped_compose_file_is_what_the_command_prints(commands):
    done = commands.run("dslth", "compose", "mesh10.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "docker-compose.yml").read_text()


def test_a_compose_file_has_a_container_a_peer_and_no_key_that_some_composes_refuse():
    file = yaml.safe_load(compose("mesh10.yaml", 10, config.load("mesh10.yaml")))
    assert set(file) == {
        "x-volumes",
        "x-peer",
        "services",
        "volumes",
    }  # 'version' and 'name' are refused by one Compose or another
    peers = {name: service for name, service in file["services"].items() if name != "collector"}
    assert sorted(peers) == sorted(f"peer-{i}" for i in range(10))
    for name, peer in peers.items():
        assert peer["hostname"] == name  # the peer's id is read off it
        assert peer["command"][:3] == ["dslth-peer", "--topology", "mesh10.yaml"]
        assert peer["init"] is True
        assert peer["restart"].startswith("on-failure")
        assert peer["deploy"]["endpoint_mode"] == "dnsrr"
        assert peer["deploy"]["resources"]["limits"]["memory"] == "256M"
        own = [volume for volume in peer["volumes"] if volume == f"{name}:/state"]
        assert len(own) == 1  # with its private key
        shared = set(peer["volumes"]) - set(own)
        assert shared == {"${DSLTH_DATA:-data}:/data:ro", "keys:/state/keys/public", "tickets:/state/tickets"}


def test_a_topology_of_ones_own_is_mounted_and_its_image_may_be_anybodys(commands, topology_file, tmp_path):
    (tmp_path / "run $1").mkdir()
    topology_file("run $1/mine.yaml")
    done = commands.run("dslth", "compose", "run $1/mine.yaml", "--image", "elsewhere/dslth:1", "--memory", "1G")
    assert done.returncode == 0, done.stderr
    peer = yaml.safe_load(done.stdout)["services"]["peer-2"]
    assert peer["image"] == "elsewhere/dslth:1"
    assert "build" not in peer
    assert "./run $$1:/topologies:ro" in peer["volumes"]
    assert "/topologies/mine.yaml" in peer["command"]
    assert peer["deploy"]["resources"]["limits"]["memory"] == "1G"


def test_a_container_sees_its_own_peers_data_and_nobody_elses(commands, topology_file, tmp_path):
    (tmp_path / "here").mkdir()
    for path, inside in (("own/{id}.npz", "/topologies/own/{}.npz"), ("/data/peer-{id}", "/data/peer-{}")):
        model = {"name": "./nets.py:Net"}
        file = topology_file("here/mine.yaml", data={"path": path}, model=model)
        services = yaml.safe_load(commands.run("dslth", "compose", file).stdout)["services"]
        for peer in range(3):
            mounts = [volume.split(":") for volume in services[f"peer-{peer}"]["volumes"] if volume[0] in "./"]
            here = path.format(id=peer) if path[0] == "/" else f"./here/{path.format(id=peer)}"
            assert mounts == [
                [here, inside.format(peer), "ro"],
                ["./here/mine.yaml", "/topologies/mine.yaml", "ro"],
                ["./here/nets.py", "/topologies/nets.py", "ro"],
            ]
        assert not any("npz" in volume or "/data" in volume for volume in services["collector"]["volumes"])


def test_the_image_takes_what_a_peer_needs_and_nothing_else():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    taken = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    assert all((ROOT / path).exists() for path in taken)
    assert not {".git", ".venv", "tests", "runs"} & set(taken)


# --- where a peer is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("localhost", ["localhost"]),
        ("a,b", ["a", "b"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("node[08-10,12],gpu1", ["node08", "node09", "node10", "node12", "gpu1"]),
        ("r[1-2]n[0-1]", ["r1n0", "r1n1", "r2n0", "r2n1"]),
        ("rack1-node[1,3].lan", ["rack1-node1.lan", "rack1-node3.lan"]),
    ],
)
def test_lists_of_nodes(nodes, names):
    assert slurm.expand(nodes) == names


@pytest.mark.parametrize("nodes", ["", "node[", "node[a-b]", "node[1-", "no de", "node[]"])
def test_what_is_no_list_of_nodes_is_one_line(nodes):
    with pytest.raises(ConfigError, match=r"not a list of nodes|not a range"):
        slurm.expand(nodes)


def step(nodes, per_node, task=0, **more):
    return {"SLURM_PROCID": str(task), "SLURM_STEP_NODELIST": nodes, "SLURM_STEP_TASKS_PER_NODE": per_node} | more


@pytest.mark.parametrize(
    ("environment", "hosts"),
    [
        (step("n", "3"), ["n", "n", "n"]),
        (step("n[1-2]", "2(x2)"), ["n1", "n1", "n2", "n2"]),
        (step("n[1-3]", "2,1(x2)"), ["n1", "n1", "n2", "n3"]),
        (step("n[1-2]", "2,1", SLURM_DISTRIBUTION="cyclic"), ["n1", "n2", "n1"]),
        (step("n[1-2]", "2,1", SLURM_DISTRIBUTION="block:cyclic"), ["n1", "n1", "n2"]),
    ],
)
def test_tasks_of_a_slurm_step_are_where_slurm_put_them(environment, hosts):
    found = slurm.step(environment)
    assert found is not None
    assert list(found.hosts) == hosts


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_PROCID": "0"},
        step("n[1-2]", "2"),
        step("n", "many"),
        step("n[1-2]", "1(x2)", SLURM_DISTRIBUTION="plane=1"),
    ],
)
def test_a_slurm_step_that_cannot_be_told_is_one_line(environment):
    with pytest.raises(ConfigError, match=r"^Slurm: "):
        slurm.step(environment)


def test_a_task_of_a_step_is_the_peer_of_that_number_at_its_nodes_port():
    peer, network = place.find(None, None, None, 3, step("n[1-2]", "2,1", task=2), "n2")
    assert peer == 2
    assert [network.address(i) for i in range(3)] == ["tcp://n1:47100", "tcp://n1:47101", "tcp://n2:47102"]
    with pytest.raises(ConfigError, match="srun -n 4"):
        place.find(None, None, None, 4, step("n[1-2]", "2,1", task=2), "n2")


def test_a_hosts_name_tells_the_peer_and_the_command_line_wins():
    assert place.find(None, None, None, 10, {}, "peer-7")[0] == 7
    assert place.find(None, None, None, 10, {}, "peer-7.service.cluster")[0] == 7
    assert place.find(3, None, None, 10, step("n", "1"), "peer-7")[0] == 3
    with pytest.raises(UnknownPeerError, match="--id"):
        place.find(None, None, None, 10, {}, "laptop")
    with pytest.raises(UnknownPeerError, match="no peer 10"):
        place.find(None, None, None, 10, {}, "peer-10")


def test_host_replaces_the_files_addresses_and_leaves_its_security():
    file = config.NetworkConfig(addresses=("a:1", "b:2"), security="none", keys="here")
    network = place.find(1, "peer-{id}:5000", file, 2, {}, "")[1]
    assert [network.address(i) for i in range(2)] == ["tcp://peer-0:5000", "tcp://peer-1:5000"]
    assert (network.security, network.keys) == ("none", "here")
    ports = place.find(1, "10.0.0.{id}", None, 2, {}, "")[1]
    assert [ports.address(i) for i in range(2)] == ["tcp://10.0.0.0:47100", "tcp://10.0.0.1:47101"]
    for wrong in ("peer:5000", "peer {id}", "peer-{id}:99999", "peer-{name}"):
        with pytest.raises(ConfigError, match="--host"):
            place.find(1, wrong, None, 2, {}, "")


# --- the health check -----------------------------------------------------------------------------------------------


def test_a_listener_is_healthy_while_it_takes_callers():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert takes_callers(port)
        with socket.create_connection(("127.0.0.1", port)):
            assert not takes_callers(port)  # nobody accepts
            listener.accept()[0].close()
            assert takes_callers(port)
    assert not takes_callers(port)


def test_the_health_check_is_light():
    code = "import sys, dslth.deploy.alive; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "zmq", "typer", "pydantic", "networkx"} & set(loaded)


# --- reports --------------------------------------------------------------------------------------------------------


def noticed(peer, detail=""):
    return Noticed(peer=peer, time=1.0, round=1, what="skipped", detail=detail)


def receive(inbox, seconds=20):
    deadline = time.monotonic() + seconds
    while (event := inbox.receive(0.1)) is None:
        assert time.monotonic() < deadline, "no report came"
    return event


def refused(inbox, reason, seconds=20):
    deadline = time.monotonic() + seconds
    while reason not in inbox.refused():
        assert time.monotonic() < deadline, inbox.refused()
        assert inbox.receive(0.05) is None
    return inbox.refused()[reason]


@pytest.fixture
def folder(tmp_path):
    """Keys of peers 0 and 1, of the collector after them, and of a stranger."""
    keys.make(tmp_path, range(4))
    return tmp_path


def test_reports_come_through_under_keys_and_nobody_speaks_for_another(folder):
    inbox = Inbox("tcp://127.0.0.1:*", 2, keys.load(folder, 2, [0, 1]))
    reporters = [Reporter(inbox.address, keys.load(folder, peer, [2]), collector=2) for peer in (0, 3)]
    plain = Reporter(inbox.address)
    try:
        reporters[0].emit(noticed(0, "mine"))
        assert receive(inbox).detail == "mine"
        reporters[0].emit(noticed(1))
        assert refused(inbox, "impostor") == 1
        reporters[1].emit(noticed(0))
        assert refused(inbox, "unknown-key") >= 1
        plain.emit(noticed(0))
        assert refused(inbox, "no-key") >= 1
    finally:
        for end in (*reporters, plain, inbox):
            end.close()


def test_what_is_no_report_is_dropped_and_counted():
    inbox = Inbox("tcp://127.0.0.1:*", 2)
    try:
        with pushing(inbox.address) as push:
            push.send(b"\x80 not JSON")
            assert refused(inbox, "no-report") == 1
            push.send_multipart([noticed(0).model_dump_json().encode()] * 2)
            push.send(noticed(2).model_dump_json().encode())  # no such peer
            while inbox.refused()["no-report"] < 3:
                assert inbox.receive(5) is None
            push.send(b" " * (1 << 21))  # cut off
            reporter = Reporter(inbox.address)
            reporter.emit(noticed(1))
            assert receive(inbox).peer == 1
            reporter.close()
    finally:
        inbox.close()


def test_a_message_that_never_ends_is_cut_off():
    inbox = Inbox("tcp://127.0.0.1:*", 2)
    port = int(inbox.address.rpartition(":")[2])
    frame = b"\x03" + (1 << 19).to_bytes(8, "big") + bytes(1 << 19)  # long, and more to come
    try:
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
            ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH"
            raw.sendall(b"\x04" + bytes([len(ready)]) + ready)
            with pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012
                for _ in range(10_000):
                    raw.sendall(frame)
        assert refused(inbox, "flood") == 1
    finally:
        inbox.close()


def collected(commands, topology_file, tmp_path, *more, **experiment):
    port = free_ports(4)
    file = topology_file(network={"base_port": port}, **experiment)
    listen = f"tcp://127.0.0.1:{port + 3}"
    collector = commands.start("dslth", "collect", file, "--listen", listen, "--out", "all", "--json", *more)
    own = ["-t", file, "--reports", listen, "--quiet"]
    peers = [commands.start("dslth-peer", *own, "--id", i, "--out", f"peer-{i}") for i in range(3)]
    return collector, peers, file


def finish(*processes, code=0):
    for process in processes:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == code, stderr
        yield stdout


def test_a_collector_ends_with_the_figures_of_peers_elsewhere(commands, topology_file, tmp_path):
    collector, peers, _ = collected(commands, topology_file, tmp_path)
    assert list(finish(*peers)) == ["", "", ""]
    summary = Summary.model_validate_json(next(finish(collector)))
    assert written(tmp_path / "all") == summary
    for i, peer in enumerate(summary.peers):
        own = printed(commands.run("dslth", "inspect", f"peer-{i}", "--json")).peers[0]
        assert own == peer
        assert own.rounds_completed == 3
    assert (tmp_path / "all/topology.yaml").exists()


def test_a_collector_waits_for_a_peer_that_comes_back_and_gives_up_on_one_that_does_not(
    commands, topology_file, tmp_path
):
    collector, peers, _ = collected(
        commands, topology_file, tmp_path, "--patience", "8", rounds=4000, deadline=1, checkpoint_every=1
    )
    reports = [tmp_path / f"all/peers/peer-{peer}.jsonl" for peer in range(3)]
    while not all(file.exists() and '"event":"round"' in file.read_text() for file in reports):
        assert collector.poll() is None
        time.sleep(0.05)
    for peer in peers:
        peer.send_signal(signal.SIGTERM)
    list(finish(*peers, code=130))
    _, stderr = collector.communicate(timeout=60)
    assert collector.returncode == 11, stderr
    assert re.search("have not finished: 0, 1, 2", stderr)
    summary = written(tmp_path / "all")
    assert [0 < peer.rounds_completed < 4000 for peer in summary.peers] == [True] * 3, summary.peers


def test_a_finished_peer_starts_over_and_a_collector_too(commands, topology_file, tmp_path):
    collector, peers, file = collected(commands, topology_file, tmp_path)
    list(finish(*peers))
    first = Summary.model_validate_json(next(finish(collector)))
    listen = re.search(r"base_port: (\d+)", file.read_text())
    address = f"tcp://127.0.0.1:{int(listen[1]) + 3}"
    collector = commands.start("dslth", "collect", file, "--listen", address, "--out", "all", "--json")
    own = ["-t", file, "--reports", address, "--quiet"]
    list(finish(*[commands.start("dslth-peer", *own, "--id", i, "--out", f"peer-{i}") for i in range(3)]))
    again = Summary.model_validate_json(next(finish(collector)))
    assert digests(again) == digests(first)
    assert again.payload_bytes_sent == first.payload_bytes_sent  # the run's own, and not both runs'
    lines = (tmp_path / "all/peers/peer-0.jsonl").read_text().splitlines()
    assert len([line for line in lines if '"event":"round"' in line]) == 3


def test_a_collector_that_was_ended_resumes_where_it_was(commands, topology_file, tmp_path):
    from dslth import topology
    from dslth.deploy.collector import Collector
    from dslth.runs.folder import RunFolder

    run = config.load(topology_file())
    graph = topology.build(run.graph, 1)

    def done(peer):
        return Finished(
            peer=peer,
            time=1.0,
            rounds_completed=3,
            accuracy_personal=None,
            accuracy_global=None,
            mask_digest="",
            links={},
            refused={},
        )

    def collect(peers, stop_after):
        inbox = Inbox("tcp://127.0.0.1:*", 3)
        reporter = Reporter(inbox.address)
        collector = Collector(run, graph, RunFolder(tmp_path / "all"))
        stop, heard = threading.Event(), []

        def watch(event):
            heard.append(event.peer)
            if len(heard) == stop_after:
                stop.set()

        for peer in peers:
            reporter.emit(done(peer))
        collector.collect(inbox, stop, watch, patience=20)
        for end in (reporter, inbox, collector):
            end.close()
        return sorted(heard), stop.is_set()

    assert collect([0, 1], stop_after=2) == ([0, 1], True)
    assert collect([2], stop_after=None) == ([0, 1, 2], False)


# --- Kubernetes -----------------------------------------------------------------------------------------------------


def test_kubernetes_manifests_keep_to_the_published_schemas(commands):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own way to find its schemas
        import kubernetes_validate

    done = commands.run("dslth", "k8s", "mesh10", "--image", "elsewhere/dslth:1")
    assert done.returncode == 0, done.stderr
    documents = list(yaml.safe_load_all(done.stdout))
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    kinds = {document["kind"]: document for document in documents}
    peers = kinds["StatefulSet"]
    assert peers["spec"]["replicas"] == 10
    assert peers["spec"]["serviceName"] in [d["metadata"]["name"] for d in documents if d["kind"] == "Service"]
    labels = peers["spec"]["template"]["metadata"]["labels"]
    assert peers["spec"]["selector"]["matchLabels"].items() <= labels.items()
    volumes = {v["name"] for v in peers["spec"]["template"]["spec"]["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in peers["spec"]["volumeClaimTemplates"]}
    mounts = {m["name"] for m in peers["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert mounts == volumes
    broken = json.loads(json.dumps(peers))
    broken["spec"]["replicas"] = "ten"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_the_topology_in_the_manifests_is_the_one_of_the_file(commands, tmp_path):
    done = commands.run("dslth", "k8s", "mesh10")
    held = next(d for d in yaml.safe_load_all(done.stdout) if d["kind"] == "ConfigMap")["data"]["topology.yaml"]
    (tmp_path / "held.yaml").write_text(held)
    held, shipped = config.load(tmp_path / "held.yaml"), config.load("mesh10")
    assert held.experiment == shipped.experiment
    assert len(held.graph.edges) == 45
