"""The figures of a run: what they add up, and the JSON that programs read."""

import json
import subprocess
import sys
from importlib.resources import files

import pytest
from pydantic import ValidationError

from dslth.errors import SkippedError
from dslth.runs.events import Finished, Joined, LinkStats, Noticed, RoundReport, Seconds
from dslth.runs.folder import RunFolder
from dslth.runs.summary import Summary, check_played, summarise

LINK = LinkStats(payload_sent=10, message_sent=20, link_sent=30)


def joined(peer, time, **changes):
    known = {"neighbours": (1 - peer,), "model": "mlp", "sizes": (8,), "training_samples": 1, "device": "", "links": {}}
    return Joined(peer=peer, time=time, **known | changes)


def report(peer, time, round_):
    return RoundReport(
        peer=peer, time=time, round=round_, loss=1.0, accuracy_personal=0.5, accuracy_global=0.25, density=(0.5,),
        flips=None, mask_digest="00", links={1 - peer: LINK}, seconds=Seconds(), missing=(7,), refused={"stale": 2},
        memory_bytes=1,
    )  # fmt: skip


def finished(peer, time, rounds):
    return Finished(
        peer=peer, time=time, rounds_completed=rounds, accuracy_personal=0.5, accuracy_global=0.25, mask_digest="ab",
        links={1 - peer: LINK}, refused={"stale": 3},
    )  # fmt: skip


def written(path, said, **manifest):
    """A run folder of what two peers said."""
    folder = RunFolder(path)
    (path / "peers").mkdir()
    (path / "manifest.json").write_text(json.dumps(manifest))
    for peer, events in said.items():
        folder.reports(peer).write_text("".join(event.model_dump_json() + "\n" for event in events))
    return folder


@pytest.fixture
def folder(tmp_path):
    """A run of two peers, of which the second was stopped after its first round."""
    lost = Noticed(peer=1, time=1003.5, round=0, what="lost", neighbour=0, detail="é")
    said = {
        0: [joined(0, 1001.0, processor="AVX2"), report(0, 1003.0, 0), finished(0, 1004.0, 4)],
        1: [joined(1, 1002.0, processor="AVX2"), report(1, 1003.0, 0), lost],
    }
    return written(tmp_path, said, launched=1000.0)


def test_a_summary_adds_up_what_was_run_and_sent_and_not_the_pause(tmp_path):
    said = {
        peer: [
            *[joined(peer, 1002.0), report(peer, 1003.0, 0), report(peer, 1004.0 + peer, 1)],  # killed here
            *[joined(peer, 5001.0), report(peer, 5002.0, 1), report(peer, 5003.0, 2)],  # round 1 once more
        ]
        for peer in (0, 1)
    }
    summary = summarise(written(tmp_path, said, launched=1000.0, resumed=[5000.0, 9000.0, "noon"]))
    assert summary.seconds == 5.0 + 3.0 + 0.0
    assert summary.message_bytes_sent == 2 * 4 * 20  # what was sent twice was sent twice
    assert summary.rounds == 3


def test_programs_read_these_keys_in_this_order(folder):
    sent = {"payload_bytes_sent": 20, "payload_bytes_received": 0, "message_bytes_sent": 40}
    sent |= {"message_bytes_received": 0, "link_bytes_sent": 60, "link_bytes_received": None}
    less = {"payload_bytes_sent": 10, "payload_bytes_received": 0, "message_bytes_sent": 20}
    less |= {"message_bytes_received": 0, "link_bytes_sent": 30, "link_bytes_received": None}
    learned = {"accuracy_personal": 0.5, "accuracy_global": 0.25}
    rounds = {"rounds_completed": 4, "rounds_played": 1, "missing": 1, "refused": {"stale": 3}}
    fewer = {"rounds_completed": 1, "rounds_played": 1, "missing": 1, "refused": {"stale": 2}}
    lost = {"peer": 1, "time": 1003.5, "round": 0, "what": "lost", "neighbour": 0, "detail": "é"}
    expected = {
        "run_dir": str(folder.path),
        "rounds": 4,
        "seconds": 4.0,
        "seconds_to_first_round": 3.0,
        **learned,
        "message_bits_per_weight_per_round": 8 * 60 / (8 * 2),
        "payload_bits_per_weight_per_round": 8 * 30 / (8 * 2),
        "masked_weights": 8,
        "directed_edges": 2,
        "payload_bytes_sent": 30,
        "message_bytes_sent": 60,
        "link_bytes_sent": 90,
        "processors": {"AVX2": [0, 1]},
        "peers": [
            {"id": 0, **learned, "mask_digest": "ab", **sent, **rounds},
            {"id": 1, **learned, "mask_digest": None, **less, **fewer},
        ],
        "happenings": [lost],
        "lines_ignored": 0,
    }
    summary = summarise(folder)
    assert summary.to_json() == json.dumps(expected)
    folder.write_summary(summary)
    assert (folder.path / "summary.json").read_text() == json.dumps(expected, indent=2) + "\n"
    assert Summary.model_validate_json(summary.to_json()) == summary
    with pytest.raises(ValidationError):
        Summary.model_validate(expected | {"more": 1})


def test_the_shipped_schema_is_that_of_a_summary():
    schema = json.loads((files("dslth.runs") / "summary.schema.json").read_text())
    assert schema == Summary.model_json_schema(), "write it again: json.dumps(Summary.model_json_schema(), indent=2)"


def test_a_peer_that_skipped_more_than_it_played_is_named(folder):
    peers = summarise(folder).peers
    with pytest.raises(SkippedError, match="peer 0 played 1 of 4 rounds and skipped the others"):
        check_played(peers)
    with pytest.raises(SkippedError, match="and 1 more peers likewise;"):
        check_played(2 * peers)
    check_played(peers[1:])


@pytest.mark.parametrize("module", ["dslth.runs.summary", "dslth.engines.supervisor"])
def test_figures_are_worked_out_without_tables_and_learning(module):
    code = f"import sys, {module}; print([name for name in ('rich', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
