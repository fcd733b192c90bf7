"""Peers in virtual time: they learn and send what peers in real time do, at times that follow from the file alone."""

import multiprocessing
import signal
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from dslth import config, topology
from dslth.cli import main as cli
from dslth.engines.base import mask_learner
from dslth.engines.batched import Batched
from dslth.engines.supervisor import run_local
from dslth.errors import CheckpointError, ConfigError, PeerFailedError
from dslth.learner import Learner
from dslth.runs import tickets
from dslth.runs.events import RoundReport
from dslth.runs.folder import RunFolder
from dslth.transport import faulty
from live import processes_of, rounds, rounds_done, rounds_of, wait_for, what_happened, written


@pytest.fixture
def play(topology_file, tmp_path):
    """Run a topology file's peers, batched unless ``engine`` says otherwise; return the outcome."""

    def run(name, *, engine=Batched, link=None, watch=lambda event: None, method=mask_learner, **settings):
        file = topology_file(f"{name}.yaml", network={"link": link} if link else None, **settings)
        read = config.load(file)
        graph = topology.build(read.graph, read.experiment.seed)
        folder = RunFolder(tmp_path / name)
        return run_local(read, graph, folder, engine=engine, watch=watch, method=method, transport="memory")

    return run


def said(outcome):
    """Every peer's reports, without what differs by machine and start."""
    began = outcome.folder.launched()
    return {
        peer: [
            event.model_dump(exclude={"memory_bytes"}) | {"time": round(event.time - began, 4)}  # Unix time's precision
            for event in events
        ]
        for peer, events in outcome.folder.events().items()
    }


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_masks_bytes_and_accuracies_are_those_of_peers_in_real_time(play, model):
    settings = {"graph": {"kind": "ring", "peers": 6}, "rounds": 5, "model": {"name": model}, "evaluate_every": 2}
    real, virtual = play("real", engine=None, **settings), play("virtual", **settings)
    assert len(rounds_of(real.folder.path)) == 30
    assert rounds_of(virtual.folder.path) == rounds_of(real.folder.path)
    alike = "payload_bytes_sent", "message_bytes_sent", "accuracy_personal", "accuracy_global", "masked_weights"
    assert [getattr(virtual.summary, key) for key in alike] == [getattr(real.summary, key) for key in alike]
    for mine, theirs in zip(virtual.summary.peers, real.summary.peers, strict=True):
        assert mine == theirs  # what it sent and received, its last mask, its accuracies
        assert tickets.load(virtual.folder.ticket(mine.id)) == tickets.load(real.folder.ticket(mine.id))


def test_time_is_what_the_file_declares(play):
    device = {"step_seconds": 0.25, "speed": 0.5}
    outcome = play("run", link={"latency": 0.125}, peers=dict.fromkeys(range(3), device))
    for reports in map(rounds, outcome.folder.events().values()):
        # two local steps of half a second each, then the mask is under way
        assert [report.seconds.compute for report in reports] == [1.0] * 3
        assert [report.seconds.wait for report in reports] == pytest.approx([0.125] * 3)
        assert [later.time - report.time for report, later in pairwise(reports)] == pytest.approx([1.125] * 2)
    # there and back: a connection, then a hello and its welcome
    assert outcome.summary.seconds_to_first_round == pytest.approx(0.5 + 1.125)


def test_who_misses_the_deadline_is_missing_each_time_alike(play):
    slow = {1: {"step_seconds": 2}}
    settings = {"graph": {"kind": "ring", "peers": 4}, "rounds": 12, "mode": "deadline", "deadline": 1, "peers": slow}
    once, again = play("once", link="lte-m", **settings), play("again", link="lte-m", **settings)
    assert said(once) == said(again)
    missing = {peer: {who for report in rounds(events) for who in report.missing} for peer, events in said_by(once)}
    assert 1 in missing[0]
    assert 1 in missing[2]
    assert 1 not in missing[3]  # which is no neighbour of it
    assert what_happened(once.summary)["skipped", 1] > 0  # it keeps up with the others


def said_by(outcome):
    return outcome.folder.events().items()


def test_a_lossy_thin_link_costs_time_and_no_mask(play):
    settings = {"rounds": 3, "deadline": "none"}
    fast = play("fast", **settings)
    slow = play("slow", link={"bandwidth": 9600, "latency": 0.5, "loss": 0.3}, **settings)
    assert rounds_of(slow.folder.path) == rounds_of(fast.folder.path)
    assert slow.summary.payload_bytes_sent == fast.summary.payload_bytes_sent
    assert slow.summary.seconds > 60 * fast.summary.seconds


def test_without_exchange_each_learns_alone(play):
    alone = {"algorithm": {"exchange": False}, "rounds": 2}
    real, virtual = play("real", engine=None, **alone), play("virtual", **alone)
    assert rounds_of(virtual.folder.path) == rounds_of(real.folder.path)
    assert virtual.summary.message_bytes_sent == 0


def test_a_worker_that_is_killed_ends_the_run_with_one_line(play):
    def kill(event):
        if isinstance(event, RoundReport) and event.round == 1:
            multiprocessing.active_children()[0].kill()

    outcome = play("run", watch=kill, rounds=200)
    assert type(outcome.failure) is PeerFailedError
    assert "was killed; is there memory left" in str(outcome.failure)
    assert outcome.summary.rounds >= 2  # what was measured is kept


class Broken(Learner):
    def local_update(self, round_):
        if self.peer == 1 and round_ == 2:
            raise ArithmeticError("for good")
        return super().local_update(round_)


def broken(job):
    return Broken(job.peer, job.topology.peers, job.run.experiment, job.run.device(job.peer))


def test_a_learner_that_fails_ends_the_run_and_is_named(play):
    outcome = play("run", method=broken, rounds=4)
    assert str(outcome.failure) == "peer 1: ArithmeticError: for good"
    assert "local_update" in outcome.folder.reports(1).with_suffix(".log").read_text()
    assert outcome.summary.rounds == 2


def test_what_only_processes_have_is_refused(topology_file, tmp_path):
    run = config.load(topology_file())
    graph = topology.build(run.graph, 1)
    with pytest.raises(ConfigError, match="has neither faults"):
        run_local(run, graph, RunFolder(tmp_path / "run"), engine=Batched, faults=faulty.parse("drop=0.1"))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (["--transport", "memory"], "--transport"),
        (["--restart", "never"], "--restart"),
        (["--faults", "drop=0.1"], "--faults"),
        (["--no-orphans"], "--orphans"),
        (["--curve"], "--curve"),
    ],
)
def test_options_of_processes_are_named_and_refused(topology_file, line, named):
    done = CliRunner().invoke(cli.app, ["run", "-t", str(topology_file()), "--engine", "batched", *line])
    assert done.exit_code == 2
    assert named in done.stderr


# --- as a command ---------------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_was_measured_and_leaves_no_process(commands, topology_file, tmp_path):
    file = topology_file(rounds=10_000)
    command = commands.start("dslth", "run", "-t", file, "--engine", "batched", "--out", "run")
    wait_for(lambda: rounds_done(tmp_path / "run", 3) >= 2)
    command.send_signal(signal.SIGINT)
    stdout, stderr = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "virtual seconds" in stdout
    last = stderr.strip().splitlines()[-1]
    assert last == "interrupted; what was measured is in run"  # it cannot be resumed
    assert written(tmp_path / "run").rounds >= 2
    wait_for(lambda: not processes_of(command.pid))
    done = commands.run("dslth", "run", "--resume", "run")
    assert done.returncode == 13
    assert "keeps no checkpoints" in done.stderr


def test_a_command_that_is_killed_leaves_no_process(commands, topology_file, tmp_path):
    command = commands.start("dslth", "run", "-t", topology_file(rounds=10_000), "--engine", "batched", "--out", "run")
    wait_for(lambda: rounds_done(tmp_path / "run", 3) >= 1)
    assert len(processes_of(command.pid)) > 2
    command.kill()
    wait_for(lambda: not [pid for pid in processes_of(command.pid) if pid != command.pid])


def test_links_play_no_part_in_real_time_and_that_is_said(topology_file, tmp_path):
    file, out = topology_file(rounds=1, network={"link": "lora"}), str(tmp_path / "run")
    done = CliRunner().invoke(cli.app, ["run", "-t", str(file), "--transport", "memory", "--out", out, "--json"])
    assert done.exit_code == 0
    assert "note: links play no part" in done.stderr


def test_checkpoints_cannot_be_kept(topology_file, tmp_path):
    file = topology_file(keep_checkpoints=True)
    done = CliRunner().invoke(cli.app, ["run", "-t", str(file), "--engine", "batched", "--out", str(tmp_path / "run")])
    assert type(done.exception) is CheckpointError
