"""Tables of a run, from a folder's files alone: damaged ones, and terminals that are narrow."""

import io
import re
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dslth.errors import MissingFileError
from dslth.runs.events import Finished, Joined, LinkStats, Noticed, RoundReport
from dslth.runs.folder import RunFolder
from dslth.runs.summary import summarise
from dslth.show import tables
from dslth.show.live import LiveTable
from dslth.show.tables import Fitted
from dslth.wire import Refusal
from live import printed

PROPERTY = settings(max_examples=60, deadline=None, database=None)

# --- damaged run folders --------------------------------------------------------------------------------------------


def damaged_copy(run_folder, folder):
    """Copy what inspect reads."""
    (folder / "peers").mkdir(parents=True, exist_ok=True)
    for file in run_folder.glob("peers/*.jsonl"):
        (folder / "peers" / file.name).write_bytes(file.read_bytes())
    (folder / "manifest.json").write_bytes((run_folder / "manifest.json").read_bytes())
    return RunFolder(folder)


def shown(*tables, width=80):
    text = io.StringIO()
    console = Console(file=text, width=width)
    for table in tables:
        console.print(table)
    return text.getvalue()


def everything(folder, width=80):
    summary = summarise(folder)
    of_the_run = tables.peer_table(folder, summary), tables.totals(summary)
    return shown(*of_the_run, tables.phase_table(folder), tables.edge_table(folder), width=width)


@pytest.mark.parametrize(
    "manifest",
    [
        *[b"", b"[]", b"[[1, 2]]", b'"text"', b"17", b"null", b"\xff\xfe", 100_000 * b"["],
        *[b'{"launched": "noon"}', b'{"launched": true}', b'{"launched": null}', b'{"launched": [1]}'],
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_manifest_that_says_nothing_costs_no_more_than_that(run_folder, tmp_path, manifest):
    folder = damaged_copy(run_folder, tmp_path / "run")
    (folder.path / "manifest.json").write_bytes(manifest)
    whole = summarise(RunFolder(run_folder))
    found = summarise(folder)
    assert found.peers == whole.peers
    assert found.seconds <= whole.seconds
    assert "personal accuracy" in everything(folder)


def test_lines_that_are_no_reports_are_skipped(run_folder, tmp_path, commands):
    folder = damaged_copy(run_folder, tmp_path / "run")
    file = folder.reports(1)
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1:1] = [b"\xff\xfe garbage\n", b"\n", b'{"event": "round"}\n', b"[1]\n", lines[1][:40] + b"\n"]
    file.write_bytes(b"".join(lines) + lines[-1][:50])
    done = commands.run("dslth", "inspect", "run", "--json")
    assert printed(done).peers == summarise(RunFolder(run_folder)).peers


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1), st.binary(max_size=3), st.integers(0, 300)), max_size=4))
def test_whatever_happens_to_its_bytes_a_run_folder_is_shown_or_refused(run_folder, tmp_path_factory, wounds):
    folder = damaged_copy(run_folder, tmp_path_factory.getbasetemp() / "wounded")
    for peer, place, put, taken in wounds:
        file = folder.reports(peer)
        content = file.read_bytes()
        start = int(place * len(content))
        file.write_bytes(content[:start] + put + content[start + taken :])
    with suppress(MissingFileError):
        assert "totals" in everything(folder)


# --- tables ---------------------------------------------------------------------------------------------------------


def of_many_devices(run_folder, folder):
    """Write a run in which every figure is as wide as possible."""
    devices = ["microcontroller", "single-board", "a-device-with-a-name-as-long-as-a-line-of-text", "phone"]
    link = {n: LinkStats(payload_sent=10**11, message_sent=10**11, link_sent=10**11) for n in range(998, 1001)}
    events = RunFolder(run_folder).events()[0]
    (folder / "peers").mkdir(parents=True)
    for number, device in enumerate(devices):
        peer = 997 + number
        said = []
        for event in events:
            changes = {"peer": peer, "links": link}
            if isinstance(event, Joined):
                changes |= {"device": device, "training_samples": 100_000 + number}
            elif isinstance(event, RoundReport):
                changes |= {
                    "density": (0.3, 0.25 + number / 100, 0.9),
                    "missing": tuple(range(20)),
                    "refused": {"stranger": 1000, "out-of-turn": 77_777, "wrong-run": 5},
                }
            said.append(event.model_copy(update=changes))
        lines = "".join(event.model_dump_json() + "\n" for event in said)
        RunFolder(folder).reports(peer).write_text(lines)
    return RunFolder(folder), devices


@pytest.mark.parametrize("width", [80, 60, 200])
def test_tables_fit_and_say_what_there_is_no_room_for(run_folder, tmp_path, width):
    folder, devices = of_many_devices(run_folder, tmp_path / "wide")
    text = everything(folder, width)
    assert max(map(len, text.splitlines())) <= width
    columns = text.partition("totals")[0]
    for name in ("personal", "messages", "microcontroller"):
        assert name in columns or width == 60
    left_out = "left out" in columns
    assert left_out == (width < 200)
    assert ("ticket" in columns.partition("left out")[0]) == (width == 200)
    live = LiveTable(1001, 100_000, "live")
    for events in folder.events().values():
        for event in events:
            live.take(event)
    live_text = shown(live, width=width)
    assert max(map(len, live_text.splitlines())) <= width
    assert "20 peers" in live_text
    assert devices[0] in live_text or width == 60


class Watched:
    """A live table of peers that report what a test says, and a clock that it turns."""

    def __init__(self, run_folder, peers, rounds):
        self.now = 0.0
        self.live = LiveTable(peers, rounds, "live", clock=lambda: self.now)
        joined, report, *_ = RunFolder(run_folder).events()[0]
        for peer in range(peers):
            self.live.take(joined.model_copy(update={"peer": peer}))
        self._report = report

    def play(self, round_, accuracies, seconds=1.0):
        self.now += seconds
        for peer, accuracy in accuracies.items():
            said = {"peer": peer, "round": round_, "accuracy_personal": accuracy, "missing": ()}
            self.live.take(self._report.model_copy(update=said))

    def lines(self, height=24, width=80):
        text = io.StringIO()
        console = Console(file=text, width=width, height=height, force_terminal=True, color_system=None)
        console.print(self.live)
        return text.getvalue().rstrip("\n").split("\n")

    def peers(self, **size):
        """The peers shown, and why."""
        cells = [line.split() for line in self.lines(**size) if re.match(r" *\d+ ", line)]
        return {int(row[0]): next((word for word in row[1:3] if word.isalpha()), "") for row in cells}


@pytest.mark.parametrize("peers", [10, 20, 100])
@pytest.mark.parametrize(("height", "width"), [(24, 80), (24, 40), (8, 80), (3, 80)])
def test_a_screen_has_room_for_the_live_table_and_always_for_how_far_the_run_is(run_folder, peers, height, width):
    watched = Watched(run_folder, peers, 20)
    for round_ in (0, 1):
        watched.play(round_, {peer: peer / peers for peer in range(peers)})
        lines = watched.lines(height, width)
        assert len(lines) < height
        assert max(map(len, lines)) <= width
        assert f"round {round_ + 1}/20" in " ".join(lines[-2:])
        assert f"{19 - round_} s left" in " ".join(" ".join(lines[-2:]).split())
        shown = watched.peers(height=height, width=width)
        free = height - 1 - len(lines)
        assert len(shown) == peers or free == 0 or not shown, "there is room for more"


def test_the_live_table_shows_who_died_is_stuck_is_worst_and_best(run_folder):
    watched = Watched(run_folder, 100, 20)
    before = watched.peers()
    assert list(before) == list(range(len(before)))
    assert set(before.values()) == {""}
    alive = {peer: peer / 100 for peer in range(100) if peer not in (40, 60)}
    watched.play(0, alive | {40: 0.4, 60: 0.6})
    assert set(watched.peers().values()) == {"worst", "best"}
    watched.live.take(Noticed(peer=60, time=1, round=1, what="died"))
    for round_ in range(1, 8):
        watched.play(round_, alive, seconds=2.5)
    shown = watched.peers()
    assert list(shown)[:5] == [40, 60, 0, 1, 2]
    assert list(shown)[-3:] == [97, 98, 99]
    assert list(shown.values())[:3] == ["stuck", "died", "worst"]
    assert "2 s left" not in watched.lines()[-1]  # while it stands still the time left does, too
    summary = Counter(shown.values())
    of = f"1 stuck, 1 died, {summary['worst']} worst, {summary['best']} best"
    assert f"shown of 100 peers: {of}" in watched.lines()[-2]
    watched.play(1, {40: 0.4, 60: 0.6})
    assert set(watched.peers().values()) == {"worst", "best"}
    everybody = watched.peers(height=200)
    assert list(everybody) == list(range(100))
    assert set(everybody.values()) == {""}


def test_the_time_left_is_that_of_the_slowest_peer_and_of_rounds_that_are_not_yet_played(run_folder):
    watched = Watched(run_folder, 2, 12)
    assert watched.live.line().endswith("time left unknown")
    watched.play(4, {0: 0.5}, seconds=10)  # of a run that was resumed
    assert watched.live.seconds_left is None
    watched.play(4, {1: 0.5}, seconds=0)
    assert watched.live.seconds_left == 70
    watched.now += 4
    assert watched.live.seconds_left == 66
    watched.now += 100
    assert watched.live.seconds_left == 60
    for round_ in range(5, 12):
        watched.play(round_, {0: 0.5, 1: 0.5})
    assert watched.live.seconds_left == 0


def test_the_live_table_counts_the_rounds_that_all_peers_have_ended(run_folder):
    said = RunFolder(run_folder).events()
    live, ended = LiveTable(len(said), 1_000, "live"), dict.fromkeys(said, 0)
    for events in zip(*said.values(), strict=True):
        for peer, event in zip(said, events, strict=True):
            live.take(event)
            ended[peer] = event.round + 1 if isinstance(event, RoundReport) else ended[peer]
            live.take(event)  # again, as after a crash
            assert live.done == min(ended.values())
    assert live.done > 1


def test_a_table_goes_without_its_spare_columns_in_order_and_no_more_than_it_must():
    columns = {"a": ["aaaa"], "b": ["bbbb"], "c": ["cccc"], "empty": [""]}
    table = Fitted("t", columns, spare=("b", "empty", "a"), note="some words")
    whole, narrow, narrowest = (shown(table, width=width) for width in (80, 14, 8))
    assert "aaaa" in whole
    assert "bbbb" in whole
    assert "empty" not in whole
    assert "left out" not in whole
    assert "bbbb" not in narrow
    assert "aaaa" in narrow
    assert "aaaa" not in narrowest
    assert "cccc" in narrowest
    assert "some words" in whole


def test_a_table_without_spare_columns_is_continued_below_so_that_no_figure_is_cut():
    columns = {"name": ["one", "two"]} | {f"figure {n}": [f"{n}.12345", f"{n}.67890"] for n in range(9)}
    parts = shown(Fitted("t", columns, note="some words"), width=40)
    assert "…" not in parts
    assert max(map(len, parts.splitlines())) <= 40
    for cells in columns.values():
        for cell in cells:
            assert parts.count(cell) == (parts.count("one") if cell in columns["name"] else 1)
    assert parts.count("some words") == 1


@pytest.mark.parametrize("reason", [*Refusal, "of-a-later-version"])
def test_what_to_think_of_a_refusal_stands_below_the_table(run_folder, tmp_path, reason):
    folder = damaged_copy(run_folder, tmp_path / "run")
    events = [
        event.model_copy(update={"refused": {reason: 1234}}) if isinstance(event, Finished) else event
        for event in folder.events()[1]
    ]
    folder.reports(1).write_text("".join(event.model_dump_json() + "\n" for event in events))
    text = shown(tables.peer_table(folder, summarise(folder)), width=200)
    (said,) = [line for line in text.splitlines() if line.startswith(f"refused: {reason} 1,234")]
    assert (len(said.split()) > 6) == (reason in set(Refusal))


def test_the_totals_name_payload_bits_and_message_bits(run_folder):
    summary = summarise(RunFolder(run_folder))
    rows = shown(tables.totals(summary)).splitlines()
    for what in ("payload", "message"):
        (row,) = [row for row in rows if f"{what} bits per weight, edge and round" in row]
        assert f"{getattr(summary, f'{what}_bits_per_weight_per_round'):.4f} (dense" in row
