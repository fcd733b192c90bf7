"""Checkpoints: what is read is what was written, and whatever is on disk is a checkpoint or one clear line."""

import errno
import os
import resource
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file

from dslth.errors import CheckpointError
from dslth.masks import BitMask
from dslth.runs import checkpoint
from dslth.runs.checkpoint import Checkpoint, Checkpoints
from dslth.runs.summary import Summary
from live import rounds_done, wait_for

RUN = "12" * 16
SIZES = (24, 13)
UNPACK = partial(BitMask.unpack, sizes=SIZES)
names = st.text("abcdefghij.0123456789", min_size=1, max_size=12).map(lambda name: f"scores.{name}")
floats = st.floats(width=32, allow_nan=False)
shapes = arrays.array_shapes(min_dims=1, max_dims=3, max_side=5)
masks = st.tuples(*(arrays.arrays(np.bool_, size) for size in SIZES)).map(BitMask.from_arrays)
sent = st.dictionaries(st.integers(0, 10**6), masks, max_size=4).map(lambda kept: sorted(kept.items()))
checkpoints = st.builds(
    Checkpoint,
    run=st.just(RUN),
    round=st.integers(0, 10**7),
    tensors=st.dictionaries(names, arrays.arrays(np.float32, shapes, elements=floats), max_size=4),
    sent=sent,
    refused=st.dictionaries(st.sampled_from(["stale", "corrupt", "flood"]), st.integers(0, 2**40)),
)


def some(round_, value=1.0):
    mask = BitMask.from_arrays(np.arange(n) % 2 for n in SIZES)
    return Checkpoint(RUN, round_, {"scores.0": np.full(100, value, np.float32)}, [(round_ - 1, mask)], {"stale": 3})


@pytest.fixture
def folder(tmp_path):
    return Checkpoints(tmp_path / "checkpoints" / "peer-0")


@settings(max_examples=50, deadline=None)
@given(checkpoints)
def test_what_is_read_is_what_was_written(tmp_path_factory, written):
    folder = Checkpoints(tmp_path_factory.mktemp("peer"))
    folder.save(written)
    read, notes = folder.load(RUN, UNPACK)
    assert notes == []
    assert (read.run, read.round, read.refused) == (written.run, written.round, written.refused)
    assert read.sent == written.sent
    assert read.tensors.keys() == written.tensors.keys()
    for name, tensor in written.tensors.items():
        assert np.array_equal(read.tensors[name], tensor)
        assert read.tensors[name].dtype == np.float32


def test_none_is_none(folder):
    assert folder.load(RUN, UNPACK) == (None, [])


def test_the_last_two_are_kept_and_nothing_else_is_left(folder):
    for round_ in (5, 10, 99, 100, 1000):
        folder.save(some(round_))
    assert sorted(path.name for path in folder.folder.iterdir()) == [
        "round-00000100.safetensors",
        "round-00001000.safetensors",
    ]
    assert folder.load(RUN, UNPACK)[0].round == 1000
    (folder.folder / ".round-00001005.safetensors.17").write_bytes(b"the process was killed in its midst")
    folder.save(some(1010))
    assert sorted(path.name for path in folder.folder.iterdir()) == [
        "round-00001000.safetensors",
        "round-00001010.safetensors",
    ]
    folder.clear()
    assert not folder.folder.parent.exists()
    folder.clear()


def test_what_is_no_file_is_no_checkpoint(folder):
    folder.save(some(5))
    os.mkfifo(folder.folder / "round-00000009.safetensors")
    assert folder.load(RUN, UNPACK)[0].round == 5


def test_torn_at_any_length_the_one_before_serves(folder):
    folder.save(some(5))
    folder.save(some(10))
    newest = folder.files()[0]
    whole = newest.read_bytes()
    for length in range(len(whole)):
        newest.write_bytes(whole[:length])
        read, notes = folder.load(RUN, UNPACK)
        assert read.round == 5, length
        assert len(notes) == 1
        assert newest.name in notes[0]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_byte_is_seen(tmp_path_factory, data):
    folder = Checkpoints(tmp_path_factory.mktemp("peer"))
    folder.save(some(5))
    newest = folder.files()[0]
    damaged = bytearray(newest.read_bytes())
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    newest.write_bytes(bytes(damaged))
    with suppress(CheckpointError):
        read, _ = folder.load(RUN, UNPACK)  # in the header's padding at most
        assert (read.round, read.sent, read.refused) == (5, some(5).sent, some(5).refused)
        assert np.array_equal(read.tensors["scores.0"], some(5).tensors["scores.0"])


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_one_clear_line(tmp_path_factory, content):
    folder = Checkpoints(tmp_path_factory.mktemp("peer"))
    (folder.folder / "round-00000005.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="remove it to start over"):
        folder.load(RUN, UNPACK)


def test_another_runs_checkpoint_is_not_used_and_neither_is_one_before_it(folder):
    folder.save(some(5))
    folder.save(replace(some(10), run="00" * 16))
    with pytest.raises(CheckpointError, match=f"belongs to another run: .* or remove {folder.folder} to start over"):
        folder.load(RUN, UNPACK)


def test_another_versions_checkpoint_is_not_used(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", checkpoint.VERSION - 1)
    folder.save(some(5))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="another version of dslth"):
        folder.load(RUN, UNPACK)


def test_masks_of_another_layout_are_not_read(folder):
    folder.save(some(5))
    with pytest.raises(CheckpointError):
        folder.load(RUN, partial(BitMask.unpack, sizes=(*SIZES, 1000)))


def test_a_safetensors_file_of_somebody_else_is_not_read(folder):
    folder.folder.mkdir(parents=True)
    save_file({"weight": np.zeros(3, np.float32)}, folder.folder / "round-00000005.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        folder.load(RUN, UNPACK)


def test_nothing_in_it_runs(folder):
    """Safetensors are numbers and strings: there is no code to run."""
    folder.save(some(5))
    assert all(array.dtype in (np.float32, np.uint8) for array in load_file(folder.files()[0]).values())


@contextmanager
def small_files(size):
    """Let no file of this process grow beyond ``size``, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # Python ignores SIGXFSZ: writes fail with EFBIG
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoint_before_whole(folder):
    folder.save(some(5))
    with small_files(300), pytest.raises(OSError, match="File too large") as raised:
        folder.save(some(10))
    assert raised.value.errno == errno.EFBIG
    assert [path.name for path in folder.folder.iterdir()] == ["round-00000005.safetensors"]
    assert folder.load(RUN, UNPACK)[0].round == 5


def test_a_peer_whose_disk_is_full_says_so_once_and_continues(commands, topology_file, tmp_path):
    limit = 60_000  # a peer's checkpoint takes more, its reports less
    file = topology_file(rounds=6, checkpoint_every=1)
    run = commands.start(
        "dslth",
        "run",
        *("-t", file, "--out", tmp_path / "run", "--json"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    stdout, stderr = run.communicate(timeout=120)
    assert run.returncode == 0, stderr
    summary = Summary.model_validate_json(stdout)
    assert [peer.rounds_completed for peer in summary.peers] == [6] * 3
    assert stderr.count("cannot write a checkpoint") == 3  # each peer, once
    assert [(h.what, h.round) for h in summary.happenings] == [("unsaved", 1)] * 3
    assert not list(tmp_path.glob("run/checkpoints/*/*"))


def test_a_torn_checkpoint_of_a_stopped_run_costs_rounds_and_not_the_run(commands, topology_file, tmp_path):
    rounds = {"rounds": 100_000, "checkpoint_every": 2, "evaluate_every": 100_000, "keep_checkpoints": True}
    run = commands.start("dslth", "run", "-t", topology_file(**rounds), "--out", out := tmp_path / "run")
    wait_for(lambda: rounds_done(out, 3) >= 9)
    run.terminate()
    run.communicate(timeout=60)
    for newest in (sorted(kept.iterdir())[-1] for kept in out.glob("checkpoints/*")):
        newest.write_bytes(newest.read_bytes()[:1000])
    done = rounds_done(out, 3) + 2
    again = commands.run("dslth", "run", "--resume", out, "--rounds", done, "--json")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("using the one before it") == 3
    for old in out.glob("checkpoints/*/*"):
        old.write_bytes(b"")
    over = commands.run("dslth", "run", "--resume", out, "--rounds", done + 2)
    assert over.returncode == CheckpointError.exit_code
    assert over.stderr.count("\n") == 1
    assert "remove it to start over" in over.stderr
