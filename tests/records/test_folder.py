"""A run folder has an owner: a second command gets one line and changes nothing; a finished run stays as it is."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from dslth import files
from dslth.errors import BusyError
from dslth.runs.events import Finished
from dslth.runs.folder import RunFolder
from dslth.runs.summary import PeerSummary, Summary, summarise
from live import digests, peers_of, printed, processes_of, rounds_done, rounds_of, summary_of, wait_for
from processes import ENV
from tap import free_ports

PEERS = 3
LONG = {"rounds": 100_000, "checkpoint_every": 2, "evaluate_every": 100_000}


def everything(folder):
    """All that is on disk, and when it was written."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def busy(done, *words):
    """Check that a second command ended with one line that has these words, and with its exit code."""
    assert done.returncode == BusyError.exit_code, (done.returncode, done.stderr)
    said = done.stderr.strip().splitlines()
    assert len(said) == 1, done.stderr
    assert all(str(word) in said[0] for word in words), said
    assert done.stdout == ""


def at_round(out, round_):
    wait_for(lambda: rounds_done(out, PEERS) >= round_)


# --- the lock -------------------------------------------------------------------------------------------------------

HOLD = """
import os, sys, time
from pathlib import Path
from dslth.files import Lock
lock = Lock(Path(sys.argv[1]))
if os.fork() == 0:
    os.execlp("sleep", "sleep", "60")
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_is_gone_with_its_process_and_not_held_by_what_it_started(tmp_path):
    path = tmp_path / "locks" / "run"
    assert files.holder(path) is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], env=ENV, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout.readline() == "held\n"
            assert files.holder(path) == f"process {process.pid}"
            with pytest.raises(BlockingIOError):
                files.Lock(path)
            process.kill()
            wait_for(lambda: files.holder(path) is None)  # though its child lives
            assert len(processes_of(process.pid)) >= 1
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    files.Lock(path).release()


def test_a_lock_keeps_out_other_threads_too_until_it_is_released(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.owned_by(3), folder.owned_by(4):
        with pytest.raises(BusyError, match=f"peer 3 .*process {os.getpid()}"), folder.owned_by(3):
            pass
        with pytest.raises(BusyError, match=r"peer 3 \(process .* still at work"), folder.owned():
            pass
        folder.check_free()
    with folder.owned():
        with pytest.raises(BusyError):
            folder.check_free()
        with folder.owned_by(3):  # as the launcher's own peers do
            pass


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"process 1 on [/x]\n", b"process 7 on elsewhere\n"])
def test_whatever_a_lock_file_says_of_its_holder(tmp_path, content):
    lock = files.Lock(path := tmp_path / "lock")
    path.write_bytes(content)
    assert files.holder(path) == ("process 7 on elsewhere" if b"elsewhere" in content else "another process")
    lock.release()


# --- a second command -----------------------------------------------------------------------------------------------


def test_a_peer_that_is_typed_twice_changes_nothing_of_the_first(commands, topology_file, tmp_path):
    file = topology_file(network={"base_port": free_ports(PEERS)}, **LONG | {"checkpoint_every": 0})
    out = tmp_path / "run"
    own = ["-t", file, "--out", out, "--quiet"]
    peers = [commands.start("dslth-peer", "--id", peer, *own) for peer in range(PEERS)]
    at_round(out, 2)
    before = {path: path.read_bytes() for path in out.glob("peers/*")}
    busy(commands.run("dslth-peer", "--id", 1, *own), "peer 1", f"process {peers[1].pid}", out)
    elsewhere = commands.run("dslth-peer", "--id", 1, "-t", file, "--out", tmp_path / "other")
    assert elsewhere.returncode == 8  # its port is taken
    assert not (tmp_path / "other/manifest.json").exists()
    for path, text in before.items():
        assert path.read_bytes().startswith(text)
    busy(commands.run("dslth", "run", "--resume", out), "peer 0", "peer 2", f"process {peers[2].pid}")
    collect = ["collect", file, "--listen", "tcp://127.0.0.1:*", "--out", out]
    busy(commands.run("dslth", *collect), "peer 0")
    assert [peer.poll() for peer in peers] == [None] * PEERS


def test_a_peer_whose_port_is_taken_keeps_the_reports_of_its_last_run(commands, topology_file, tmp_path):
    file, out = topology_file(network={"base_port": free_ports(PEERS)}), tmp_path / "run"
    own = ["-t", file, "--out", out, "--quiet"]
    for peer in [commands.start("dslth-peer", "--id", peer, *own) for peer in range(PEERS)]:
        peer.communicate(timeout=60)
    before = everything(out)
    other = commands.start("dslth-peer", "--id", 1, "-t", file, "--out", tmp_path / "other", "--quiet")
    wait_for(lambda: (tmp_path / "other/manifest.json").exists())
    assert commands.run("dslth-peer", "--id", 1, *own).returncode == 8
    assert {path: now for path, now in everything(out).items() if "locks" not in path.parts} == {
        path: then for path, then in before.items() if "locks" not in path.parts
    }
    assert other.poll() is None


def test_a_second_launcher_and_one_while_orphans_learn_change_nothing(commands, topology_file, tmp_path):
    run = commands.start("dslth", "run", "-t", topology_file(**LONG), "--out", out := tmp_path / "run")
    at_round(out, 3)
    resume = ["run", "--resume", out, "--json"]
    busy(commands.run("dslth", *resume), f"process {run.pid}", out)
    busy(commands.run("dslth", *resume, "--curve"), f"process {run.pid}")
    assert not (out / "keys").exists()
    orphans = wait_for(lambda: len(found := peers_of(run.pid)) == PEERS and found)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    launched = (out / "manifest.json").read_bytes()
    busy(commands.run("dslth", *resume), *(f"peer {peer} (process {orphans[peer].pid})" for peer in range(PEERS)))
    assert all(orphan.is_running() for orphan in orphans.values())
    assert (out / "manifest.json").read_bytes() == launched
    orphans[0].kill()
    orphans[1].kill()
    wait_for(lambda: files.holder(out / "locks/peer-1") is None and files.holder(out / "locks/peer-0") is None)
    busy(commands.run("dslth", *resume), "peer 2")
    orphans[2].terminate()
    wait_for(lambda: files.holder(out / "locks/peer-2") is None)
    last = RunFolder(out).events()
    summary = summary_of(commands.start("dslth", *resume, "--rounds", rounds_done(out, PEERS) + 5))
    assert all(len({e.round for e in events if e.event == "round"}) for events in last.values())
    sent = sum(
        link.message_sent for events in RunFolder(out).events().values() for e in events for link in e.links.values()
    )
    assert summary.message_bytes_sent == sent


def test_a_launcher_keeps_peers_of_the_same_folder_out(commands, topology_file, tmp_path):
    file = topology_file(**LONG)
    run = commands.start("dslth", "run", "-t", file, "--out", out := tmp_path / "run")
    at_round(out, 1)
    busy(commands.run("dslth-peer", "--id", 0, "-t", file, "--out", out), f"process {run.pid}")
    collect = ["collect", file, "--listen", "tcp://127.0.0.1:*", "--out", out]
    busy(commands.run("dslth", *collect), f"process {run.pid}")
    assert run.poll() is None


def test_a_collector_starts_over_only_if_it_can_listen(commands, topology_file, tmp_path):
    file, out = topology_file(), tmp_path / "run"
    summary_of(commands.start("dslth", "run", "-t", file, "--out", out, "--json"))
    before = everything(out)
    port = free_ports(1)
    taken = commands.start("dslth", "collect", file, "--listen", f"tcp://127.0.0.1:{port}", "--out", tmp_path / "other")
    wait_for(lambda: (tmp_path / "other/manifest.json").exists())
    done = commands.run("dslth", "collect", file, "--listen", f"tcp://127.0.0.1:{port}", "--out", out)
    assert done.returncode == 8, done.stderr
    after = everything(out)
    assert [path for path, (text, _) in before.items() if "locks" not in path.parts and after[path][0] != text] == []
    assert taken.poll() is None


# --- resuming -------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_shown_and_nothing_on_disk_changes(commands, topology_file, tmp_path):
    out = tmp_path / "run"
    first = summary_of(commands.start("dslth", "run", "-t", topology_file(), "--out", out, "--json"))
    before = everything(out)
    assert summary_of(commands.start("dslth", "run", "--resume", out, "--json")) == first
    shown = commands.run("dslth", "run", "--resume", out)
    assert shown.returncode == 0
    assert "personal accuracy, mean" in shown.stdout
    assert everything(out) == before


def test_a_run_resumes_as_it_was_started(commands, topology_file, tmp_path):
    file, out = topology_file(**LONG), tmp_path / "run"
    run = commands.start(
        "dslth", "run", "-t", file, "--out", out, *("--transport", "memory", "--faults", "delay=1ms", "--no-orphans")
    )
    at_round(out, 3)
    run.terminate()
    run.communicate(timeout=60)
    assert run.returncode == 130
    again = commands.start("dslth", "run", "--resume", out, "--json")
    at_round(out, rounds_done(out, PEERS) + 3)
    assert peers_of(again.pid) == {}  # they are its threads
    assert len(psutil.Process(again.pid).children()) == 0
    launch = RunFolder(out).launch()
    assert (launch.transport, launch.faults, launch.orphans) == ("memory", "delay=1ms", False)
    again.terminate()
    again.communicate(timeout=60)
    other = commands.start("dslth", "run", "--resume", out, "--transport", "zeromq", "--json")
    wait_for(lambda: len(peers_of(other.pid)) == PEERS)
    wait_for(lambda: RunFolder(out).launch().transport == "zeromq")
    other.terminate()
    other.communicate(timeout=60)


def test_more_rounds_are_remembered_and_another_run_is_refused_before_anything_is_written(
    commands, topology_file, tmp_path
):
    out = tmp_path / "run"
    run = commands.start("dslth", "run", "-t", topology_file(**LONG), "--out", out)
    at_round(out, 3)
    run.terminate()
    run.communicate(timeout=60)
    before = everything(out)
    done = commands.run("dslth", "run", "--resume", out, "--seed", 8)
    assert done.returncode == 13
    assert "belongs to another run: other seed" in done.stderr
    assert {p: e for p, e in everything(out).items() if "locks" not in p.parts} == {
        p: e for p, e in before.items() if "locks" not in p.parts
    }
    rounds = rounds_done(out, PEERS) + 2
    done = summary_of(commands.start("dslth", "run", "--resume", out, "--rounds", rounds, "--json"))
    assert summary_of(commands.start("dslth", "run", "--resume", out, "--json")) == done


def test_a_resumed_run_notes_when_and_adds_up(commands, topology_file, tmp_path):
    out = tmp_path / "run"
    run = commands.start("dslth", "run", "-t", topology_file(**LONG), "--out", out, "--json")
    at_round(out, 3)
    run.terminate()
    first = Summary.model_validate_json(run.communicate(timeout=60)[0])
    before = RunFolder(out).manifest()
    rounds = rounds_done(out, PEERS) + 3
    second = summary_of(commands.start("dslth", "run", "--resume", out, "--rounds", rounds, "--json"))
    manifest = RunFolder(out).manifest()
    assert [manifest[key] for key in ("launched", "started")] == [before[key] for key in ("launched", "started")]
    assert len(manifest["resumed"]) == 1
    ends = [events[-1].time for events in RunFolder(out).events().values()]
    running = max(ends) - manifest["resumed"][0]
    assert second.seconds == pytest.approx(first.seconds + running, abs=0.01)
    assert second.message_bytes_sent > first.message_bytes_sent


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_checkpoints_stay_only_while_a_run_is_unfinished(commands, topology_file, tmp_path):
    out = tmp_path / "run"
    first = summary_of(commands.start("dslth", "run", "-t", topology_file(rounds=6), "--out", out, "--json"))
    assert not (out / "checkpoints").exists()
    more = commands.run("dslth", "run", "--resume", out, "--rounds", 8)
    assert more.returncode == 13
    assert "keep_checkpoints" in more.stderr
    assert len(more.stderr.strip().splitlines()) == 1
    assert summary_of(commands.start("dslth", "run", "--resume", out, "--json")) == first


def test_checkpoints_that_are_kept_let_a_finished_run_go_on(commands, topology_file, tmp_path):
    kept, whole = tmp_path / "kept", tmp_path / "whole"
    file = topology_file(rounds=6, keep_checkpoints=True)
    summary_of(commands.start("dslth", "run", "-t", file, "--out", kept, "--json"))
    assert len(list(kept.glob("checkpoints/*/*"))) == 2 * PEERS
    more = summary_of(commands.start("dslth", "run", "--resume", kept, "--rounds", 9, "--json"))
    summary_of(commands.start("dslth", "run", "-t", file, "--out", whole, "--rounds", 9, "--json"))
    assert [peer.rounds_completed for peer in more.peers] == [9] * PEERS
    assert rounds_of(kept).keys() == rounds_of(whole).keys()


def test_a_peer_alone_removes_its_own_when_it_is_done_and_not_when_it_is_ended(commands, topology_file, tmp_path):
    file = topology_file(network={"base_port": free_ports(PEERS)}, **LONG)
    own = ["-t", file, "--out", out := tmp_path / "run", "--quiet", "--json"]
    peers = [commands.start("dslth-peer", "--id", peer, *own) for peer in range(PEERS)]
    at_round(out, 5)
    for peer in peers:
        peer.terminate()
        peer.communicate(timeout=60)
    assert len(list(out.glob("checkpoints/*/*"))) == 2 * PEERS
    rounds = rounds_done(out, PEERS) + 4
    for peer in [commands.start("dslth-peer", "--id", peer, *own, "--rounds", rounds) for peer in range(PEERS)]:
        assert summary_of(peer, PeerSummary).rounds_completed == rounds
    assert not (out / "checkpoints").exists()


def test_what_the_line_about_another_runs_checkpoint_advises_works(commands, topology_file, tmp_path):
    own = ["-t", topology_file(**LONG), "--id", 0, "--no-exchange", "--out", out := tmp_path / "run", "--quiet"]
    peer = commands.start("dslth-peer", *own)
    wait_for(lambda: list(out.glob("checkpoints/*/*.safetensors")))
    peer.terminate()
    peer.communicate(timeout=60)
    before = {path: path.read_bytes() for path in everything(out) if "locks" not in path.parts}
    done = commands.run("dslth-peer", *own, "--seed", 8)
    assert (done.returncode, len(done.stderr.splitlines())) == (13, 1)
    assert "other seed" in done.stderr
    assert {path: path.read_bytes() for path in before} == before
    (out / "topology.yaml").unlink()
    done = commands.run("dslth-peer", *own, "--seed", 8)
    assert (done.returncode, len(done.stderr.splitlines())) == (13, 1)
    shutil.rmtree(re.search("remove (.*) to start over", done.stderr)[1])
    done = commands.run("dslth-peer", *own, "--seed", 8, "--rounds", 3)
    assert done.returncode == 0, done.stderr
    assert len(rounds_of(out)) == 3


def test_a_run_of_which_some_peers_have_finished_resumes(commands, topology_file, tmp_path):
    file, out = topology_file(rounds=300, deadline=1, checkpoint_every=2, evaluate_every=300), tmp_path / "run"
    run = commands.start("dslth", "run", "-t", file, "--out", out, "--json", "--restart", "never")
    at_round(out, 3)
    wait_for(lambda: peers_of(run.pid).get(2)).kill()
    stdout, stderr = run.communicate(timeout=120)
    assert run.returncode == 11, stderr
    first = Summary.model_validate_json(stdout)
    assert [peer.rounds_completed == 300 for peer in first.peers] == [True, True, False]
    assert len(list(out.glob("checkpoints/*"))) == PEERS
    again = commands.run("dslth", "run", "--resume", out, "--json")
    second = Summary.model_validate_json(again.stdout)
    few = second.peers[2].rounds_played < 150  # it skips to where the others are
    assert (again.returncode, "peer 2 played" in again.stderr) == ((17, True) if few else (0, False))
    assert [peer.rounds_completed for peer in second.peers] == [300] * PEERS
    assert [digests(second)[peer] for peer in (0, 1)] == [digests(first)[peer] for peer in (0, 1)]
    assert not (out / "checkpoints").exists()


# --- what else may lie in it ----------------------------------------------------------------------------------------


def copied(run_folder, folder):
    (folder / "peers").mkdir(parents=True)
    for path in [*run_folder.glob("peers/*"), run_folder / "manifest.json"]:
        (folder / path.relative_to(run_folder)).write_bytes(path.read_bytes())
    return folder


def inspected(commands, folder):
    done = commands.run("dslth", "inspect", folder, "--json", timeout=60)
    return [peer.id for peer in printed(done).peers]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_left_alone(commands, run_folder, tmp_path, make):
    folder = copied(run_folder, tmp_path / "run")
    for name in ("peers/peer-2.jsonl", "manifest.json", "launcher.jsonl"):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
    assert inspected(commands, folder) == [0, 1]
    make(tmp_path / "alone")
    done = commands.run("dslth", "inspect", tmp_path / "alone", timeout=60)
    assert (done.returncode, len(done.stderr.splitlines())) == (6, 1)


def test_another_peers_line_in_a_peers_file_does_not_count(commands, run_folder, tmp_path):
    folder = copied(run_folder, tmp_path / "run")
    whole = summarise(RunFolder(folder))
    first = RunFolder(run_folder).reports(0)
    stranger = Finished(
        peer=5, time=1.0, rounds_completed=9, accuracy_personal=None, accuracy_global=None, mask_digest="", links={},
        refused={},
    )  # fmt: skip
    with RunFolder(folder).reports(1).open("a") as file:
        file.write(first.read_text() + stranger.model_dump_json() + "\n")
    for name in ("peer-x", "peer-07", "peer-"):
        (folder / f"peers/{name}.jsonl").write_text(first.read_text())
    ignored = 1 + len(first.read_text().splitlines())
    assert summarise(RunFolder(folder)) == whole.model_copy(update={"lines_ignored": ignored})
    assert inspected(commands, folder) == [0, 1, 2]


def test_a_link_that_leads_nowhere_is_left_alone(run_folder, tmp_path):
    folder = RunFolder(copied(run_folder, tmp_path / "run"))
    loop = folder.reports(1)
    loop.unlink()
    loop.symlink_to(loop)
    assert sorted(folder.events()) == [0, 2]


def test_a_folder_whose_name_looks_like_markup(commands, topology_file, tmp_path):
    out = "we[/x]ird [bold]:smile:"
    run = commands.run("dslth", "run", "-t", topology_file(), "--out", out)
    assert run.returncode == 0, run.stderr
    resumed = commands.run("dslth", "run", "--resume", out)
    assert (resumed.returncode, resumed.stdout) == (0, run.stdout)
    assert commands.run("dslth", "inspect", out, "--edges").returncode == 0
    long = commands.start("dslth", "run", "-t", topology_file(**LONG), "--out", other := f"{out}/other")
    at_round(tmp_path / other, 1)
    long.terminate()
    _, stderr = long.communicate(timeout=60)
    assert long.returncode == 130
    assert f"to resume: dslth run --resume {other}\n" in stderr


# --- where it cannot be written -------------------------------------------------------------------------------------


def test_a_run_whose_summary_cannot_be_written_is_shown_first(commands, topology_file, tmp_path):
    out = tmp_path / "run"
    run = commands.start("dslth", "run", "-t", topology_file(**LONG | {"rounds": 30}), "--out", out)
    wait_for(lambda: (out / "manifest.json").exists())
    (out / "summary.json").mkdir()
    stdout, stderr = run.communicate(timeout=60)
    assert run.returncode == 12, stderr
    assert stderr.splitlines()[-1].startswith(f"dslth: cannot write {out}/summary.json: ")
    assert "personal accuracy, mean" in stdout
    assert list(out.rglob(".*")) == []


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        files.replace(tmp_path / "taken", b"content")
    (tmp_path / "file").write_bytes(b"before")
    files.replace(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"after"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


INTERRUPTED_AT = """
import os, signal, sys
def at(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("summary.json"):
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(at)
sys.argv[0] = "dslth"
from dslth.__main__ import main
main()
"""


@pytest.fixture
def temporary():
    """A folder with a short name: sockets lie in it, and their names may not be long."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_ctrl_c_at_the_very_end_leaves_no_temporary_folder(topology_file, tmp_path, temporary):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT, "run", "-t", topology_file(), "--out", tmp_path / "run"],
        env=ENV | {"TMPDIR": str(temporary)}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert list(temporary.iterdir()) == []
