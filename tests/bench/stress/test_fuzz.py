"""Garbage, sent to a peer during a run, and to every function that reads what comes from the network."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dslth import wire
from dslth.bench.stress import siege
from dslth.bench.stress.attacks import ATTACKS, lie
from dslth.coding import codecs
from dslth.masks import BitMask
from dslth.wire import Kind, Refusal, Refused
from receiver import DIGEST, HISTORY, ME, SIZES, read

MASK = BitMask.from_arrays(np.arange(n) % 2 == 1 for n in SIZES)
TRUE = [
    wire.hello(Kind.HELLO, ME, 1, 3),
    wire.refusal(DIGEST, 1, 3, {"seed": "8"}),
    wire.bye(DIGEST, 1, 3),
    (wire.mask_header(DIGEST, 1, 3, MASK.pack(), codecs.BITPACK.wire_id, 0, 2), MASK.pack()),
]
FIVE = range(5)
CALM = {
    "security": "none",
    "seconds": 100.0,
    "slots": [siege.Slot(name, 0, 10, 1, 1, 65) for name in ("masks", "byes") * 2],
    "by_attack": {},
    "ended": {},
    "rounds": dict.fromkeys(FIVE, (910, 1000)),
    "furthest": 1100,
    "longest": (2.9, 2.1),
    "early": dict.fromkeys(FIVE, (100e6, 100e6)),
    "late": dict.fromkeys(FIVE, (104e6, 100e6)),
    "most": dict.fromkeys(FIVE, (300e6, 100e6)),
    "descriptors": dict.fromkeys(FIVE, (30, 31)),
    "missed": (8, 0),
    "expected": 100,
    "unsaved": 0,
    "refused": {},
    "heard": {"127.0.0.1": 260},
}
CHANGES = [
    {"ended": {"peer 4": "killed by SIGABRT during bursts"}},
    {"rounds": CALM["rounds"] | {3: (890, 1000)}},
    {"furthest": 99_990},
    {"longest": (3.1, 2.1)},
    {"late": CALM["late"] | {0: (106e6, 100e6)}},
    {"most": CALM["most"] | {0: (400e6, 100e6)}},
    {"descriptors": CALM["descriptors"] | {4: (30, 40)}},
    {"missed": (9, 0)},
    {"unsaved": 1},
    {"heard": {"127.0.0.2": 1}},
    {"heard": {"ipc": 1}},
    {"slots": [replace(slot, heard=66) for slot in CALM["slots"]]},
]


def fuzzed(commands, folder, *arguments):
    done = commands.run("dslth", "bench", "fuzz", *arguments, "--out", folder / "out", "--json", timeout=250)
    return done, json.loads(done.stdout)


def test_a_peer_of_a_run_bears_garbage(commands, tmp_path):
    done, record = fuzzed(commands, tmp_path, "--messages", 3000, "--connections", 100, "--seconds", 0)
    assert done.returncode == 0, done.stderr
    found = record["garbage"]
    assert found["counted"] == found["messages"] == 3000
    assert found["masks_changed"] == 0
    assert found["masks_compared"] > 60
    assert set(found["refused"]) <= set(Refusal) | {"bad-handshake", "broken-off", "too-many-connections"}
    assert sum(found["refused"].get(name, 0) for name in ("bad-handshake", "broken-off")) >= 90
    assert len(found["refused"]) >= 6  # it is garbage of many kinds


@pytest.mark.parametrize("security", ["none", "curve"])
def test_a_run_bears_strangers_and_a_neighbour_that_lies(commands, tmp_path, security):
    done, record = fuzzed(commands, tmp_path, "--messages", 0, "--seconds", 10, "--security", security)
    assert done.returncode == 0, done.stderr
    found = record["sieges"][security]
    assert set(found["by_attack"]) == set(ATTACKS)
    for name in set(ATTACKS) - {"answers", "answering bursts"}:  # those need a victim that is connected just then
        assert found["by_attack"][name]["messages"] + found["by_attack"][name]["connections"] > 0, name


def test_harm_is_seen():
    calm = siege.SiegeResult(**CALM)
    assert all(calm.conditions().values())
    for change in CHANGES:
        assert list(replace(calm, **change).conditions().values()).count(False) == 1, change


@given(st.sampled_from(TRUE))
def test_a_lie_is_sealed_as_the_truth_is(frames):
    assert lie(frames) == frames
    assert wire.read_header(lie(frames, round=77), wire.max_payload(SIZES)).round == 77


@settings(max_examples=500)
@given(st.none() | st.binary(max_size=400))
def test_no_bytes_do_more_than_be_refused(message):
    with pytest.raises(Refused):
        read(message)


@settings(max_examples=500)
@given(st.sampled_from(TRUE), st.data())
def test_a_flipped_bit_is_refused(frames, data):
    damaged = bytearray(b"".join(frames))
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Refused):
        read(bytes(damaged))


@settings(max_examples=500)
@given(st.sampled_from(sorted(codecs.BY_ID)), st.binary(max_size=60))
def test_every_decoder_gives_a_mask_or_says_that_it_cannot(wire_id, payload):
    try:
        mask = codecs.BY_ID[wire_id].decode(payload, HISTORY)
    except ValueError:
        return
    assert mask.sizes == SIZES


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_coverage_guided_fuzzing_finds_nothing_in_a_bounded_time(tmp_path):
    target, corpus = Path(__file__).parents[2] / "fuzz_target.py", tmp_path / "corpus"
    corpus.mkdir()
    for number, (header, payload) in enumerate(TRUE):  # in the form that the target reads
        (corpus / str(number)).write_bytes(bytes([0]) + header + payload)
    done = subprocess.run(
        [sys.executable, target, "-max_total_time=5", "-verbosity=0", f"-artifact_prefix={tmp_path}/", corpus],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
