"""Runs that are killed and resumed: with checkpoints and no deadline the masks are those of an undisturbed run."""

import os
import signal
import time

import pytest

from dslth import config, topology
from dslth.engines.supervisor import run_local
from dslth.runs.folder import RunFolder
from dslth.runs.summary import PeerSummary, Summary
from dslth.seeds import Stream
from live import (
    digests,
    peers_of,
    processes_of,
    rounds_done,
    rounds_of,
    summary_of,
    wait_for,
    what_happened,
    write_topology,
)
from tap import free_ports

PEERS = 3
ROUNDS = 40


PATIENT = {"rounds": ROUNDS, "deadline": "none", "checkpoint_every": 3, "evaluate_every": ROUNDS}


@pytest.fixture
def patient(topology_file):
    """Write a run whose peers wait for a neighbour until it is back."""

    def write(**changes):
        return topology_file("patient.yaml", **PATIENT | changes)

    return write


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The masks of the run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = write_topology(folder / "patient.yaml", **PATIENT)
    run = config.load(file)
    graph = topology.build(run.graph, run.experiment.seed)
    done = run_local(run, graph, RunFolder(folder / "run"), transport="memory")
    return digests(done.summary), rounds_of(folder / "run")


def start(commands, file, out):
    return commands.start("dslth", "run", "-t", file, "--out", out, "--json")


def go_on(commands, out):
    return commands.start("dslth", "run", "--resume", out, "--json")


def at_round(out, round_):
    wait_for(lambda: rounds_done(out, PEERS) >= round_)


def test_peers_that_are_killed_at_any_moment_change_no_mask(commands, patient, undisturbed, tmp_path):
    chance = Stream(4, "kills")
    run = start(commands, patient(), out := tmp_path / "run")
    victims = []
    for round_ in (5, 14, 26):
        at_round(out, round_)
        time.sleep(float(chance.uniform(1)[0]) / 20)  # anywhere in a round
        peer = int(chance.choice(PEERS, 1)[0])
        victims.append((peer, wait_for(lambda peer=peer: peers_of(run.pid).get(peer))))
        victims[-1][1].kill()
    summary = summary_of(run)
    assert digests(summary) == undisturbed[0]
    assert rounds_of(out) == undisturbed[1]
    happened = what_happened(summary)
    for peer, _ in victims:
        assert happened["died", peer] == happened["restarted", peer] >= 1
        assert happened["resumed", peer] >= 1
    assert wait_for(lambda: not processes_of(run.pid)) is True


def test_a_whole_run_that_is_killed_resumes_bit_for_bit(commands, patient, undisturbed, tmp_path):
    run = start(commands, patient(), out := tmp_path / "run")
    for round_ in (7, 20):
        at_round(out, round_)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        wait_for(lambda pid=run.pid: not processes_of(pid))
        run = go_on(commands, out)
    summary = summary_of(run)
    assert digests(summary) == undisturbed[0]
    assert rounds_of(out) == undisturbed[1]
    assert all(what_happened(summary)["resumed", peer] == 2 for peer in range(PEERS))
    assert [peer.rounds_completed for peer in summary.peers] == [ROUNDS] * PEERS


def test_ctrl_c_and_resume_change_no_mask(commands, patient, undisturbed, tmp_path):
    run = start(commands, patient(), out := tmp_path / "run")
    at_round(out, 8)
    os.killpg(run.pid, signal.SIGINT)
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 130
    assert f"--resume {out}" in stderr
    before = rounds_done(out, PEERS)
    summary = summary_of(go_on(commands, out))
    assert digests(summary) == undisturbed[0]
    assert rounds_of(out) == undisturbed[1]
    resumed = [h.round for h in summary.happenings if h.what == "resumed"]
    assert min(resumed) >= before  # a peer that is asked to end loses no round


def test_a_run_of_which_all_is_done_is_shown_again(commands, patient, tmp_path):
    first = summary_of(start(commands, patient(rounds=4), out := tmp_path / "run"))
    assert digests(summary_of(go_on(commands, out))) == digests(first)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_peer_in_a_process_of_its_own_resumes_with_the_same_command(commands, patient, undisturbed, tmp_path, end):
    file, out = patient(network={"base_port": free_ports(PEERS)}), tmp_path / "run"

    def be(peer):
        return commands.start("dslth-peer", "--id", peer, "-t", file, "--out", out, "--json", "--join-timeout", 120)

    processes = {peer: be(peer) for peer in range(PEERS)}
    at_round(out, 8)
    processes[1].send_signal(end)
    processes[1].communicate(timeout=60)
    processes[1] = be(1)
    summaries = {peer: summary_of(process, PeerSummary) for peer, process in processes.items()}
    assert {peer: summary.mask_digest for peer, summary in summaries.items()} == undisturbed[0]
    assert rounds_of(out) == undisturbed[1]
    shown = Summary.model_validate_json(commands.run("dslth", "inspect", out, "--json").stdout)
    assert what_happened(shown)["resumed", 1] == 1


def test_a_run_folder_of_other_settings_is_not_resumed(commands, patient, tmp_path):
    run = start(commands, patient(rounds=100_000), out := tmp_path / "run")
    at_round(out, 4)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    wait_for(lambda: not processes_of(run.pid))
    done = commands.run("dslth", "run", "--resume", out, "--seed", 8)
    assert done.returncode == 13
    assert "belongs to another run" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    nowhere = commands.run("dslth", "run", "--resume", tmp_path)
    assert nowhere.returncode == 6
    assert "topology.yaml" in nowhere.stderr
