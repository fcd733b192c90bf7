"""Whole runs with real processes over real sockets."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import msgpack
import psutil
import pytest
import torch
import yaml

from dslth import wire
from dslth.runs import tickets
from dslth.runs.folder import RunFolder
from dslth.runs.summary import PeerSummary, Summary
from live import digests, printed, rounds_of, summary_of, written
from tap import Tap, free_ports


def wait_for(condition, seconds=60):
    """Poll a condition; fail if it never holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def processes_of(pid):
    """The live processes of the session that a command started."""
    return [p.pid for p in psutil.process_iter() if p.pid != pid and _session(p.pid) == pid]


def _session(pid):
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def run_json(commands, *arguments, **options):
    return printed(commands.run("dslth", "run", "--json", *arguments, **options))


def test_masks_are_the_same_over_sockets_in_memory_and_peer_by_peer_in_any_order(commands, topology_file, tmp_path):
    file = topology_file(network={"base_port": free_ports(3)})
    over_sockets = run_json(commands, "-t", file, "--out", tmp_path / "sockets")
    in_memory = run_json(commands, "-t", file, "--out", tmp_path / "memory", "--transport", "memory")
    peers = []
    for peer in (2, 0, 1):  # each starts when the one before is up and waiting
        peers.append(commands.start("dslth-peer", "--id", peer, "-t", file, "--out", tmp_path / "peers", "--json"))
        wait_for(lambda peer=peer: (tmp_path / "peers" / "peers" / f"peer-{peer}.jsonl").exists())
    alone = {}
    for process in peers:
        summary = summary_of(process, PeerSummary)
        alone[summary.id] = summary.mask_digest
    assert digests(over_sockets) == digests(in_memory) == alone
    assert len(set(alone.values())) == 3
    assert rounds_of(tmp_path / "sockets") == rounds_of(tmp_path / "memory") == rounds_of(tmp_path / "peers")


def test_peers_that_compute_unlike_each_other_exchange_masks_without_a_refusal(commands, topology_file, tmp_path):
    known = ["DEFAULT", "AVX2", "AVX512"]
    own = torch.backends.cpu.get_cpu_capability()
    ladder = known[: known.index(own) + 1] if own in known else ["DEFAULT", own]
    network, started = {"base_port": free_ports(3)}, []
    for peer in range(3):
        settings = {"evaluate_every": peer + 1, "data": {"test_samples": 20 + 30 * peer}}  # each peer's own choice
        device = {peer: {"threads": 1 + peer % 2, "batch": 128 - peer}}
        file = topology_file(f"{peer}.yaml", network=network, peers=device, rounds=6, **settings)
        with_what = {"ATEN_CPU_CAPABILITY": ladder[peer % len(ladder)].lower()}
        line = ("--id", peer, "-t", file, "--out", f"run-{peer}", "--json")
        started.append(commands.start("dslth-peer", *line, env=with_what))
    for process in started:
        summary = summary_of(process, PeerSummary)
        assert (summary.rounds_completed, summary.missing, summary.refused) == (6, 0, {})
        (joined,) = (e for e in RunFolder(tmp_path / f"run-{summary.id}").events()[summary.id] if e.event == "joined")
        assert joined.processor == ladder[summary.id % len(ladder)]


def test_a_run_leaves_a_folder_that_stands_alone(commands, topology_file, tmp_path):
    summary = run_json(commands, "-t", topology_file(), "--out", "run")
    folder = RunFolder(tmp_path / "run")
    assert written(tmp_path / "run") == summary
    assert folder.manifest()["seed"] == 7
    assert None not in (summary.seconds_to_first_round, summary.accuracy_personal, summary.accuracy_global)
    for peer in summary.peers:
        ticket = tickets.load(folder.ticket(peer.id))
        assert ticket.mask.digest == peer.mask_digest
        assert ticket.experiment.seed == 7
        assert peer.rounds_completed == 3
        assert peer.refused == {}
    again = run_json(commands, "-t", "run/topology.yaml", "--out", "again")
    assert digests(again) == digests(summary)
    shown = commands.run("dslth", "inspect", "run", "--edges")
    assert shown.returncode == 0
    assert "0 → 1" in shown.stdout
    assert "bits per weight" in shown.stdout
    inspected = printed(commands.run("dslth", "inspect", "run", "--json"))
    assert inspected == summary.model_copy(update={"run_dir": "run"})


def test_bits_per_weight_are_message_bytes_over_weights_edges_and_rounds(commands, topology_file):
    summary = run_json(commands, "-t", topology_file(), "--out", "run")
    sent = sum(peer.message_bytes_sent for peer in summary.peers)
    weights = 64 * 256 + 256 * 128 + 128 * 10
    assert summary.message_bits_per_weight_per_round == pytest.approx(8 * sent / (weights * 6 * 3), abs=1e-6)
    packed = run_json(commands, "-t", topology_file(), "--out", "packed", "--codec", "bitpack")
    assert sum(peer.payload_bytes_sent for peer in packed.peers) == weights // 8 * 6 * 3


def test_reported_bytes_are_those_that_an_outsider_counts(commands, topology_file, tmp_path):
    base = free_ports(3)
    taps = [Tap(base + peer) for peer in range(3)]
    try:
        file = topology_file(
            network={"addresses": [f"127.0.0.1:{tap.port}" for tap in taps]}, rounds=8, codec="bitpack"
        )
        peers = [
            commands.start(
                "dslth-peer",
                "--id",
                i,
                "-t",
                file,
                "--out",
                tmp_path / "run",
                "--listen",
                f"tcp://127.0.0.1:{base + i}",
            )
            for i in range(3)
        ]
        for process in peers:
            _, stderr = process.communicate(timeout=120)
            assert process.returncode == 0, stderr
    finally:
        for tap in taps:
            tap.close()
    summary = printed(commands.run("dslth", "inspect", tmp_path / "run", "--json"))
    assert sum(peer.message_bytes_sent for peer in summary.peers) == sum(tap.message_bytes() for tap in taps)
    carried = sum(tap.total for tap in taps)
    assert summary.link_bytes_sent == pytest.approx(carried, rel=0.01)
    # nothing but headers, hellos and packed masks was on the wire
    mask = (64 * 256 + 256 * 128 + 128 * 10) // 8
    for header, payload in (wire.split(frame) for tap in taps for frame in tap.frames()):
        assert isinstance(msgpack.unpackb(header), list)
        assert len(payload) in (0, mask) or (len(payload) < 100 and isinstance(msgpack.unpackb(payload), list))


@pytest.mark.parametrize("codec", ["auto", "context", "delta"])
def test_cut_connections_cost_a_key_frame_and_change_no_mask(commands, topology_file, tmp_path, codec):
    base = free_ports(3)
    taps = [Tap(base + peer) for peer in range(3)]
    try:
        addresses = [f"127.0.0.1:{tap.port}" for tap in taps]
        file = topology_file(network={"addresses": addresses}, rounds=60, codec=codec, evaluate_every=60)
        peers = []
        for i in range(3):
            listen = f"tcp://127.0.0.1:{base + i}"
            peers.append(commands.start("dslth-peer", "--id", i, "-t", file, "--out", "run", "--listen", listen))
        for cut in range(1, 4):
            wait_for(lambda cut=cut: _least_round(tmp_path / "run") >= 10 * cut)
            for tap in taps:
                tap.cut()
        for process in peers:
            _, stderr = process.communicate(timeout=120)
            assert process.returncode == 0, stderr
    finally:
        for tap in taps:
            tap.close()
    run_json(commands, "-t", file, "--transport", "memory", "--out", tmp_path / "undisturbed")
    assert rounds_of(tmp_path / "run") == rounds_of(tmp_path / "undisturbed")
    events = [event for events in RunFolder(tmp_path / "run").events().values() for event in events]
    assert not any(event.missing for event in events if event.event == "round")
    assert max(len(tap.streams) for tap in taps) >= 2 * 2 * 4  # both neighbours of each peer came back three times


def _least_round(folder):
    files = list(folder.glob("peers/*.jsonl"))
    return min(file.read_text().count('"event":"round"') for file in files) if len(files) == 3 else 0


def test_neighbours_are_worth_having(commands):
    arguments = ("-t", "ring", "--rounds", "8", "--transport", "memory")
    together = run_json(commands, *arguments)
    alone = run_json(commands, *arguments, "--no-exchange")
    assert together.accuracy_personal > alone.accuracy_personal + 0.05
    assert alone.message_bytes_sent == 0


def test_devices_differ_and_the_report_shows_it(commands, tmp_path):
    summary = run_json(commands, "-t", "devices", "--rounds", "2", "--out", "run")
    ones = {peer.id: tickets.load(RunFolder(tmp_path / "run").ticket(peer.id)).mask.density for peer in summary.peers}
    assert ones[0][0] == pytest.approx(0.4, abs=0.01)
    assert ones[4][0] == pytest.approx(0.2, abs=0.01)
    shown = commands.run("dslth", "inspect", "run", env={"COLUMNS": "140"}).stdout
    assert "microcontroller" in shown
    assert "0.2 0.2 0.5 0.5" in shown


@pytest.mark.parametrize(
    ("data", "model"),
    [("fashion-mnist", {"name": "cnn"}), ("cifar10", {"name": "cnn"}), ("digits", {"name": "resnet8"})],
)
def test_other_data_and_models_run_with_either_preset(commands, topology_file, data, model, tmp_path):
    folder = {"cifar10": Path(__file__).parents[3] / "shared/data/cifar10"}.get(data)
    debian = Path("/usr/share/datasets/fashion-mnist")
    if (folder and not folder.is_dir()) or (data == "fashion-mnist" and not debian.is_dir()):
        pytest.skip(f"{data} is not on this machine")
    partition = {"kind": "classes", "classes_per_peer": 4, "fraction": 0.02}
    file = topology_file(data={"name": data, "partition": partition, "test_samples": 20}, model=model, rounds=2)
    where = ["--data-dir", folder] if folder else []
    for preset in ("signed", "mce-pl"):
        summary = run_json(commands, "-t", file, "--preset", preset, *where, "--out", tmp_path / preset)
        assert summary.rounds == 2


def test_graph_and_partition_can_be_replaced(commands, tmp_path):
    (tmp_path / "graph.txt").write_text("0 1 0 1\n1 0 1 0\n0 1 0 1\n1 0 1 0\n")
    (tmp_path / "counts.txt").write_text(
        "\n".join(" ".join("12" if c % 4 == p else "0" for c in range(10)) for p in range(4))
    )
    arguments = ("--graph", "graph.txt", "--partition", "counts.txt", "--rounds", "1")
    summary = run_json(commands, "-t", "ring", *arguments, "--out", "run")
    assert len(summary.peers) == 4
    joined = [events[0] for events in RunFolder(tmp_path / "run").events().values()]
    assert [event.training_samples for event in joined] == [36, 36, 24, 24]
    assert [event.neighbours for event in joined] == [(1, 3), (0, 2), (1, 3), (0, 2)]


# --- what goes wrong ------------------------------------------------------------------------------------------------


def first_round_done(folder):
    files = list(folder.glob("peers/*.jsonl"))
    return len(files) == 3 and all('"event":"round"' in file.read_text() for file in files)


@pytest.mark.parametrize("transport", ["zeromq", "memory"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_all_peers_and_keeps_what_was_measured(commands, topology_file, tmp_path, transport, number):
    out = tmp_path / "run"
    process = commands.start(
        "dslth", "run", "-t", topology_file(rounds=100_000), "--out", out, "--transport", transport
    )
    wait_for(lambda: first_round_done(out))
    os.killpg(process.pid, number)  # a terminal sends Ctrl-C to the whole group
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    summary = written(out)
    assert all(peer.rounds_completed >= 1 and peer.mask_digest for peer in summary.peers)
    assert wait_for(lambda: not processes_of(process.pid)) is True


def test_a_killed_peer_costs_its_contribution_not_the_run(commands, topology_file, tmp_path):
    out = tmp_path / "run"
    file = topology_file(rounds=400, deadline=2, graph={"kind": "full", "peers": 3})
    process = commands.start("dslth", "run", "-t", file, "--out", out, "--json", "--restart", "never")
    wait_for(lambda: first_round_done(out))
    victims = [p for p in psutil.process_iter() if _session(p.pid) == process.pid and _listens(p)]
    victims[0].kill()
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 11
    summary = Summary.model_validate_json(stdout)
    assert summary == written(out)
    assert "killed by signal 9" in stderr
    assert len(stderr.strip().splitlines()) == 1
    completed = sorted(peer.rounds_completed for peer in summary.peers)
    assert completed[0] < 400
    assert completed[1:] == [400, 400]
    assert wait_for(lambda: not processes_of(process.pid)) is True


def _listens(process):
    """Tell a peer from the launcher and its servers: it holds a listening socket and connections to neighbours."""
    try:
        states = [connection.status for connection in process.net_connections("tcp")]
    except psutil.Error:
        return False
    return psutil.CONN_LISTEN in states and len(states) >= 5


def one_line(done, code):
    assert done.returncode == code, (done.returncode, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("dslth: ")
    return lines[0]


@pytest.mark.parametrize(
    ("change", "arguments", "code", "words"),
    [
        ({"colour": "red"}, [], 3, ["colour", "unknown key"]),
        ({"seed": "many"}, [], 3, ["experiment.seed"]),
        ({"graph": {"kind": "edges", "peers": 4, "edges": [[0, 1], [2, 3]]}}, [], 4, ["2 pieces"]),
        ({"peers": {9: {"batch": 1}}}, [], 5, ["no peer 9", "0 to 2"]),
        ({}, ["--graph", "nowhere.txt"], 6, ["nowhere.txt"]),
        ({}, ["--data-dir", "nowhere"], 6, ["nowhere"]),
        ({"data": {"name": "digits", "partition": {"kind": "iid", "fraction": 0.001}}}, [], 7, ["no training sample"]),
        ({}, ["--out", "/dev/null/run"], 12, ["--out"]),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(commands, topology_file, change, arguments, code, words):
    line = one_line(commands.run("dslth", "run", "-t", topology_file(**change), *arguments), code)
    assert all(word in line for word in words), line


def test_a_topology_that_is_not_there_is_named_with_those_that_are(commands):
    line = one_line(commands.run("dslth", "run", "-t", "nowhere.yaml"), 6)
    assert "nowhere.yaml" in line
    assert "mesh10" in line


def test_a_peer_id_out_of_range(commands, topology_file):
    assert "no peer 3" in one_line(commands.run("dslth-peer", "--id", 3, "-t", topology_file()), 5)
    assert "no peer -1" in one_line(commands.run("dslth-peer", "--id", -1, "-t", topology_file()), 5)


def test_data_that_cannot_be_fetched(commands, topology_file, tmp_path):
    (tmp_path / "empty").mkdir()
    file = topology_file(data={"name": "cifar10"})
    nobody = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}  # no one listens on port 9
    done = commands.run("dslth", "run", "-t", file, "--data-dir", "empty", env=nobody)
    line = one_line(done, 7)
    assert "cifar-10-binary.tar.gz" in line
    assert "--data-dir" in line


def test_a_taken_port(commands, topology_file):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file = topology_file(network={"base_port": taken.getsockname()[1]})
        line = one_line(commands.run("dslth-peer", "--id", 0, "-t", file), 8)
        assert "in use" in line
        process = commands.start("dslth", "run", "-t", file)
        _stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 8, stderr
        assert "Traceback" not in stderr
        assert wait_for(lambda: not processes_of(process.pid)) is True


def test_a_peer_names_the_neighbours_it_waited_for(commands, topology_file):
    file = topology_file(network={"base_port": free_ports(3)})
    done = commands.run("dslth-peer", "--id", 0, "-t", file, "--join-timeout", "0.5")
    line = one_line(done, 9)
    assert "peer 1" in line
    assert "peer 2" in line


def test_peers_of_different_runs_refuse_each_other_and_say_why(commands, topology_file):
    file = topology_file(graph={"kind": "line", "peers": 2}, network={"base_port": free_ports(2)})
    peers = [commands.start("dslth-peer", "--id", i, "-t", file, "--seed", i, "--out", f"run-{i}") for i in range(2)]
    for process in peers:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 10, stderr
        assert "seed is" in stderr
        assert "Traceback" not in stderr


def test_all_three_say_why_if_one_has_another_seed(commands, topology_file):
    file = topology_file(network={"base_port": free_ports(3)})
    peers = [
        commands.start("dslth-peer", "--id", i, "-t", file, "--seed", i // 2, "--out", f"run-{i}") for i in range(3)
    ]
    for process in peers:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 10, stderr
        assert "seed is" in stderr


def test_a_loss_that_is_not_finite_is_said_once(commands, topology_file, tmp_path):
    file = topology_file(algorithm={"lasso": 1e38}, rounds=2, deadline=2)  # nobody takes such masks
    summary = run_json(commands, "-t", file, "--out", tmp_path / "run")
    diverged = [event for event in summary.happenings if event.what == "diverged"]
    assert sorted(event.peer for event in diverged) == [0, 1, 2]


def test_help_and_version_of_every_command(commands):
    for line in (["run"], ["inspect"], ["topology"], ["topology", "show"], []):
        done = commands.run("dslth", *line, "--help")
        assert done.returncode == 0
        assert "Usage" in done.stdout
    assert "--join-timeout" in commands.run("dslth-peer", "--help").stdout
    assert commands.run("dslth", "--version").stdout.startswith("dslth ")
    assert commands.run("dslth", "run", "--nonsense").returncode == 2


def test_topology_show_prints_and_draws(commands, tmp_path):
    done = commands.run("dslth", "topology", "show", "torus", "--png", "torus.png")
    assert done.returncode == 0, done.stderr
    assert "diameter" in done.stdout
    assert (tmp_path / "torus.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads(commands.run("dslth", "topology", "show", "torus", "--json").stdout)
    assert all(len(neighbours) == 4 for neighbours in figures["neighbours"])


def test_the_resolved_topology_holds_every_setting(commands, topology_file, tmp_path):
    run_json(commands, "-t", topology_file(), "--out", "run", "--rounds", "1", "--seed", "3")
    resolved = yaml.safe_load((tmp_path / "run/topology.yaml").read_text())
    assert resolved["graph"] == {"kind": "edges", "peers": 3, "edges": [[0, 1], [0, 2], [1, 2]]}
    assert resolved["experiment"]["seed"] == 3
    assert resolved["experiment"]["algorithm"]["lr"] > 0
