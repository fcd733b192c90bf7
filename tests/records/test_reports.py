"""Reports as strangers and insiders may write them: bounded, made visible, shown; and the terminals that show them."""

import io
import itertools
import json
import math
import os
import pty
import signal
import socket
import threading

import psutil
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from dslth import config, topology, wire
from dslth.bench import codec, comm, show
from dslth.bench.stress import chaos, chaos_show, soak
from dslth.engines.inbox import Inbox, Reporter
from dslth.engines.supervisor import run_local
from dslth.keys import Keys
from dslth.runs import events
from dslth.runs.events import Finished, Joined, LinkStats, Noticed, RoundReport, Seconds
from dslth.runs.folder import RunFolder
from dslth.runs.summary import Summary, summarise
from dslth.show import tables, timeline
from dslth.show.console import Terminal
from dslth.show.live import LiveTable
from dslth.show.words import decimal
from dslth.terminal import visible
from dslth.transport.tcp import Connection
from live import printed, rounds_done, wait_for, written
from pushing import pushing
from tap import free_ports

EVIL = "\x1b]0;owned\x07\x1b[31m[/x][bold]\r\n\u202eabc\u2066\u2028\x85:smile:\x9b2J" + 5000 * "w"


def noticed(peer=0, **changes):
    return Noticed(**({"peer": peer, "time": 10.0, "round": 1, "what": "skipped"} | changes))


def a_run(peer=0, rounds=2, loss=0.5):
    """The reports of a peer with one neighbour that played some rounds."""
    links = {1 - peer: LinkStats(payload_sent=10, message_sent=20, link_sent=30)}
    common = {"peer": peer, "time": 10.0, "links": links}
    learned = {"accuracy_personal": 0.5, "accuracy_global": 0.25, "mask_digest": 32 * "ab", "refused": {"stranger": 1}}
    yield Joined(**common, neighbours=(1 - peer,), model="mlp", sizes=(100,), training_samples=9, device="phone")
    for number in range(rounds):
        yield RoundReport(
            **common,
            **learned,
            round=number,
            loss=loss,
            density=(0.5,),
            flips=None,
            seconds=Seconds(),
            missing=(),
            memory_bytes=1,
        )
    yield Finished(**common, **learned, rounds_completed=rounds)


def write(folder, peer, lines):
    path = RunFolder(folder).reports(peer)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return RunFolder(folder)


def lines_of(said):
    return [event.model_dump_json().encode() for event in said]


def shown(*parts, width=80):
    text = io.StringIO()
    terminal = Terminal(file=text, width=width)
    for part in parts:
        terminal.print(part)
    return text.getvalue()


def everything(folder, width=80):
    """All that inspect prints, and the live table."""
    summary = summarise(folder)
    assert strictly(summary.to_json()) == json.loads(summary.to_json())
    live = LiveTable(2, 3, f"title {EVIL[:40]!r}")
    for said in folder.events().values():
        for event in said:
            live.take(event)
    happened = timeline.show(summary, folder.launched())
    parts = live, live.line(), tables.peer_table(folder, summary), tables.totals(summary)
    parts += (*([happened] if happened else []), tables.phase_table(folder), tables.edge_table(folder))
    return shown(*parts, width=width)


def strictly(text):
    """Read JSON as a parser does that knows no NaN."""

    def no(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=no)


def harmless(text):
    return all(line.isprintable() for line in text.split("\n"))


# --- fields ---------------------------------------------------------------------------------------------------------

NUMBERS = [0, 1, -1, 2**53, 2**53 + 1, 10**400, 1e300, -1e300, math.nan, math.inf, -math.inf, "1", "NaN", True, None]
TEXTS = ["", "ab", EVIL, "[/x]", "]", "\\", "\ud800", 100_000 * "[", "\u202e"]
extremes = st.one_of(
    st.sampled_from([*NUMBERS, *TEXTS, [], {}, [[]], 70_000 * [1], {str(i): 1 for i in range(200)}]),
    st.lists(st.sampled_from(NUMBERS), max_size=3),
    st.dictionaries(st.sampled_from(["0", "1", "-1", str(10**30), *TEXTS]), st.sampled_from(NUMBERS), max_size=3),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
)


@st.composite
def said(draw, peer):
    """A report some of whose fields are anything."""
    honest = draw(st.sampled_from([*a_run(peer), noticed(peer, neighbour=1 - peer, what="lost", detail="x")]))
    fields = json.loads(honest.model_dump_json())
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=3)):
        fields[name] = draw(extremes)
    if draw(st.booleans()) and isinstance(fields.get("links"), dict):
        fields["links"] = {draw(st.sampled_from(["0", "1", "7", str(2**53)])): {"payload_sent": draw(extremes)}}
    return json.dumps(fields).encode()


@settings(max_examples=150, database=None)
@given(st.data())
def test_whatever_peers_report_their_folder_is_shown_and_the_terminal_unharmed(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "any"
    for peer in (0, 1):
        mine = data.draw(st.lists(said(peer), max_size=6))
        write(folder, peer, [*lines_of(a_run(peer))[: data.draw(st.integers(1, 4))], *mine])
    RunFolder(folder).happenings.write_bytes(data.draw(said(0)) + b"\n")
    text = everything(RunFolder(folder))
    assert harmless(text), text
    assert max(map(len, text.split("\n"))) <= 80


def test_text_of_others_is_cut_and_made_visible():
    event = events.parse(json.dumps({**json.loads(noticed().model_dump_json()), "detail": EVIL}))
    assert event.detail.isprintable()
    assert event.detail.startswith(r"\x1b]0;owned\x07\x1b[31m[/x]")
    assert r"\u202eabc" in event.detail
    assert len(event.detail) == 1000
    assert events.parse(event.model_dump_json()) == event


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("time", value) for value in (-1, 1e300, math.nan, math.inf, "NaN")],
        *[("peer", value) for value in (-1, 2**53 + 1, 10**400)],
        *[("round", value) for value in (-1, 10**400)],
        *[("mask_digest", value) for value in ("[/x]", "\x1b[2J", "AB", 65 * "a", "ab\n")],
        *[("accuracy_personal", value) for value in (math.nan, 2, -0.1, 1e300)],
        *[("density", value) for value in ([math.inf], 70_000 * [0.5])],
        *[("refused", value) for value in ({"\x1b": 1}, {"x": -1}, {f"x{i}": 1 for i in range(101)})],
        *[("missing", value) for value in ([-1], 70_000 * [1])],
        *[
            ("links", value)
            for value in ({"-1": {}}, {"1": {"payload_sent": 10**17}}, {str(i): {} for i in range(70_000)})
        ],
        *[("seconds", value) for value in ({"wait": math.nan}, {"wait": 1e300})],
        ("memory_bytes", 1e300),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_figure_out_of_range_is_no_report(field, value):
    honest = json.loads(next(itertools.islice(a_run(), 1, None)).model_dump_json())
    assert events.parse(json.dumps(honest)) is not None
    assert events.parse(json.dumps(honest | {field: value})) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e300])
def test_a_loss_may_be_anything_and_its_report_is_json_to_all(tmp_path, loss):
    lines = lines_of(a_run(loss=loss))
    for line in lines:
        strictly(line)
    old = [json.dumps(json.loads(line) | ({"loss": loss} if b"loss" in line else {})).encode() for line in lines]
    for spelt in (lines, old):  # as constants, which Python's own parser takes
        read = events.parse(spelt[1]).loss
        assert read == loss or (math.isnan(read) and math.isnan(loss))
        assert harmless(everything(write(tmp_path, 0, spelt)))
    assert len(decimal(loss)) < 10


# --- folders --------------------------------------------------------------------------------------------------------


def test_lines_that_are_no_reports_are_left_out_and_said_in_one_line(commands, tmp_path):
    honest = lines_of(a_run())
    bad = [json.dumps(json.loads(honest[1]) | change).encode() for change in ({"time": 1e300}, {"peer": 7}, {"x": 1})]
    folder = write(tmp_path / "run", 0, [*honest, *bad, b"\x1b[2J", b""])
    (folder.path / "peers" / "peer-3.jsonl").mkdir()
    os.mkfifo(folder.reports(4))
    assert summarise(folder).lines_ignored == 4
    done = commands.run("dslth", "inspect", "run", timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "note: 4 lines under run/peers are no reports of their peer; left out"
    assert harmless(done.stdout)


def test_inspect_shows_a_hostile_folder(commands, tmp_path):
    said = [event.model_copy(update={"device": EVIL} if event.event == "joined" else {}) for event in a_run()]
    flood = [
        noticed(time=20.0 + i, detail=EVIL, what="lost", neighbour=i).model_dump_json().encode() for i in range(9999)
    ]
    write(tmp_path / "we[/x]ird", 0, [*lines_of(said), *flood, *lines_of([noticed(time=1e10, detail="the newest")])])
    done = commands.run("dslth", "inspect", "we[/x]ird", "--edges", timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert harmless(done.stdout)
    assert "we[/x]ird: 2 rounds" in done.stdout
    assert "the newest" in done.stdout
    assert "9960 before: lost 9960; --json has all" in " ".join(done.stdout.split())
    assert len(done.stdout.splitlines()) < 700
    assert len(printed(commands.run("dslth", "inspect", "we[/x]ird", "--json")).happenings) == 10_000


def test_a_collector_takes_what_is_a_report_and_its_folder_stays_good(commands, topology_file, tmp_path):
    port = free_ports(1)
    line = ["collect", topology_file(graph={"kind": "line", "peers": 2}), "--listen", f"tcp://127.0.0.1:{port}"]
    collector = commands.start("dslth", *line, "--out", "all")
    honest = lines_of([*a_run(0, rounds=3), *a_run(1, rounds=3)])
    fields = json.loads(honest[1])
    changes = [
        {"time": 1e300},
        {"round": 10**400},
        {"peer": -1},
        {"peer": 2**60},
        {"mask_digest": EVIL},
        {"round": 2**53},
    ]
    hostile = [json.dumps(fields | change).encode() for change in changes]
    hostile += [json.dumps(json.loads(honest[0]) | {"device": EVIL, "sizes": 50_000 * [2**53]}).encode()]
    hostile += [json.dumps(json.loads(noticed().model_dump_json()) | {"detail": EVIL}).encode()]
    hostile += [100_000 * b"[", json.dumps(fields | {"missing": 100_000 * [1]}).encode()]
    with pushing(f"tcp://127.0.0.1:{port}") as push:
        for text in (*hostile, *honest):
            push.send(text)
        stdout, stderr = collector.communicate(timeout=60)
    assert collector.returncode == 0, stderr
    assert "note: reports refused: no-report 7" in stderr
    assert harmless(stdout + stderr)
    assert "Traceback" not in stderr
    again = commands.run("dslth", "inspect", "all")
    assert again.returncode == 0, again.stderr
    assert harmless(again.stdout)


def test_a_collector_keeps_no_more_reports_of_a_peer_than_a_run_can_need(commands, topology_file, tmp_path):
    port = free_ports(1)
    line = ["collect", topology_file(graph={"kind": "line", "peers": 2}), "--listen", f"tcp://127.0.0.1:{port}"]
    collector = commands.start("dslth", *line, "--out", "all", "--json")
    flood = noticed(0).model_dump_json().encode()
    with pushing(f"tcp://127.0.0.1:{port}") as push:
        for text in [*lines_of(a_run(0, rounds=3)), *3000 * [flood], *lines_of(a_run(1, rounds=3))]:
            push.send(text)
        stdout, stderr = collector.communicate(timeout=60)
    assert collector.returncode == 0, stderr
    assert len((tmp_path / "all/peers/peer-0.jsonl").read_text().splitlines()) == 1000 + 3 * 10 * 2
    assert len((tmp_path / "all/peers/peer-1.jsonl").read_text().splitlines()) == 5
    assert next(line for line in stderr.splitlines() if "not kept" in line).startswith("dslth: peer 0 sends more")
    assert [peer.rounds_completed for peer in Summary.model_validate_json(stdout).peers] == [3, 3]


# --- the launcher's port --------------------------------------------------------------------------------------------


def port_of(process):
    """The port that the launcher of a run listens on."""
    listening = [c for c in psutil.Process(process.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return listening[0].laddr.port if listening else None


class Flood:
    """Sends messages to a port until it is ended, over a PUSH socket without a key and over raw connections."""

    def __init__(self, port, messages):
        self._port, self._messages, self._end = port, messages, threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._push, self._pour)]
        for thread in self._threads:
            thread.start()

    def _push(self):
        with pushing(f"tcp://127.0.0.1:{self._port}") as push:
            for message in itertools.cycle(self._messages):
                if self._end.is_set():
                    break
                try:
                    push.send(message, zmq.NOBLOCK)
                except zmq.Again:
                    self._end.wait(0.01)

    def _pour(self):
        while not self._end.wait(0.01):
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=1) as raw:
                    for message in self._messages:
                        raw.sendall(message)
            except OSError:
                pass

    def end(self):
        self._end.set()
        for thread in self._threads:
            thread.join()


HUGE = json.dumps(json.loads(list(a_run())[1].model_dump_json()) | {"links": {"1": {"message_sent": 10**400}}}).encode()
FORGED = list(a_run(rounds=1))[-1].model_copy(update={"rounds_completed": 99}).model_dump_json().encode()


@pytest.fixture
def flood():
    floods = []
    yield lambda *arguments: floods.append(Flood(*arguments))
    for made in floods:
        made.end()


def test_only_the_peers_of_a_run_report_to_its_launcher(commands, topology_file, tmp_path, flood):
    process = commands.start("dslth", "run", "-t", topology_file(rounds=40), "--out", "run", "--curve")
    flood(wait_for(lambda: process.poll() is not None or port_of(process)), [HUGE, FORGED, b"x"])
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    summary = written(tmp_path / "run")
    assert [peer.rounds_completed for peer in summary.peers] == [40, 40, 40]
    assert all(line.startswith("round ") for line in stderr.splitlines())


def test_ctrl_c_ends_a_run_whose_port_is_flooded(commands, topology_file, tmp_path, flood):
    process = commands.start("dslth", "run", "-t", topology_file(rounds=100_000), "--out", "run")
    flood(wait_for(lambda: port_of(process)), [noticed(1).model_dump_json().encode()])
    wait_for(lambda: rounds_done(tmp_path / "run", 3) > 3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)  # the flood goes on
    assert process.returncode == 130, stderr


def pouring(job, around):
    """Report without end."""
    while not around.stop.is_set():
        around.sinks[0].emit(noticed(job.peer))
    return around


def test_ctrl_c_ends_a_run_whose_peers_report_without_end(topology_file, tmp_path):
    run = config.load(topology_file())
    heard = []

    def watch(event):
        heard.append(event)
        if len(heard) == 1000:
            os.kill(os.getpid(), signal.SIGINT)

    outcome = run_local(run, topology.build(run.graph, 1), RunFolder(tmp_path / "run"), watch=watch, surround=pouring)
    assert outcome.interrupted


def test_a_peer_speaks_for_itself_alone_and_the_run_takes_turns():
    public, secret = zmq.curve_keypair()
    pairs = [zmq.curve_keypair() for _ in range(3)]
    inbox = Inbox("tcp://127.0.0.1:*", 2, Keys(public, secret, {0: pairs[0][0], 1: pairs[1][0]}))
    ends = [Reporter(inbox.address, Keys(*pair, {0: public})) for pair in pairs]
    try:
        ends[2].emit(noticed(0, detail="a stranger's"))
        ends[1].emit(noticed(0, detail="another's"))
        wait_for(lambda: inbox.receive(0.1) is None and {"impostor", "unknown-key"} <= inbox.refused().keys())
        ends[0].emit(noticed(0, detail="its own"))
        assert wait_for(lambda: inbox.receive(0.1)).detail == "its own"
    finally:
        for end in (*ends, inbox):
            end.close()


def test_a_descriptor_that_is_another_kind_of_socket_by_now_is_no_connection():
    for end in socket.socketpair():
        with end:
            connection = Connection(end.fileno())
            assert connection.ends is None
            assert not connection.refresh()
            connection.cut()
            assert end.fileno() >= 0


# --- terminals ------------------------------------------------------------------------------------------------------


@given(st.text())
def test_what_is_visible_stays_and_what_is_not_is_written_out(text):
    assert visible(text).isprintable()
    assert visible(visible(text)) == visible(text)
    assert visible(text) == text or not text.isprintable()


def test_an_error_is_one_visible_line_whoever_wrote_its_text(commands, tmp_path):
    (tmp_path / "evil.yaml").write_text('graph: {kind: ring, peers: 3}\n"\\e[2J[/x]\\n\\u202e": 1\n')
    done = commands.run("dslth", "run", "-t", "evil.yaml")
    assert done.returncode == 3
    assert harmless(done.stderr)
    assert done.stderr.count("\n") == 1
    assert r"\x1b[2J[/x]" in done.stderr
    done = commands.run("dslth", "run", "--resume", "no\nsuch\x1b[1mfile\udcff.yaml", "--debug")
    assert done.returncode == 6
    assert harmless(done.stderr)
    assert r"no\nsuch\x1b[1mfile\udcff.yaml" in done.stderr.splitlines()[-1]


def test_settings_that_a_strange_peer_tells_are_bounded():
    told = wire.differences({"seed": "1"}, {EVIL: EVIL, "\x1b" * 9000: "x", "seed": EVIL})
    assert len(told) < 1000


def plain(**more):
    return {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C", "TERM": "dumb"} | more


@pytest.mark.parametrize("line", [["inspect", "run", "--edges"], ["inspect", "run"], ["topology", "show", "ring"]])
def test_a_terminal_that_knows_ascii_alone_is_told_all_the_same(commands, tmp_path, line):
    write(tmp_path / "run", 0, lines_of([*a_run(), noticed(detail="naïve → ü")]))
    done = commands.run("dslth", *line, env=plain())
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    rich = commands.run("dslth", *line, env={"PYTHONIOENCODING": "utf-8"})
    assert len(rich.stdout.splitlines()) == len(done.stdout.splitlines())
    if line[0] == "inspect":
        assert "55" in done.stdout  # accuracies by round


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_run_on_a_terminal_that_knows_little_ends_with_its_table(commands, topology_file, encoding):
    main, side = pty.openpty()
    process = commands.start(
        "dslth", "run", "-t", topology_file(), "--out", "we[/x]ird", env=plain(PYTHONIOENCODING=encoding), stdout=side
    )
    os.close(side)
    told = b""
    try:
        while part := os.read(main, 1 << 16):
            told += part
    except OSError:  # all at the other end have closed it
        pass
    os.close(main)
    assert process.wait(60) == 0, process.stderr.read()
    assert b"personal accuracy, mean" in told
    assert "we[/x]ird: 3 rounds" in told.decode(encoding)


# --- tables ---------------------------------------------------------------------------------------------------------


def of_bench_comm():
    figures = comm.RowResult(
        row="mce-bitpack", what="", values={}, accuracy_personal=0.98765, accuracy_worst=0.87654,
        evaluated="before exchange", accuracy_other=None, payload_bytes=10**12, message_bytes=10**12,
        link_bytes=10**12, encode_ms=1234.5, decode_ms=1234.5, encode_share=0.12, decode_share=0.12, missing=1000,
        refused=0, seconds=1e5, curve=[(0, 10**12, 0.9)], bits=13 * [0.01234], bounds=13 * [[0.00123, 0.00123]],
        digests={}, accuracies=[0.98765], same_masks=False, message_bytes_to_target=10**12,
        message_bytes_to_dpsgd=10**12, to_dpsgd_ratio=0.12345,
    )  # fmt: skip
    return show.tables([figures], 0.955)


def of_bench_chaos():
    figures = [
        chaos.ChaosResult(
            name=name, seconds=1e5, accuracy_personal=0.98765, accuracy_worst=0.98765,
            rounds_completed={0: 100_000}, longest_wait={0: 9999.99}, deadlines_missed={0: 100_000},
            masks_missed=10**9, faults={"kill": 1000, "stop": 1000, "cut": 1000}, restarts=1000, rejoined=1000,
            happenings={}, failure=None,
        )
        for name in ("undisturbed", "disturbed")
    ]  # fmt: skip
    return chaos_show.parts(chaos_show.Drawing([0], [], [], 1e5), figures, 60.0)


def of_bench_codec():
    return [codec.table([codec.Figure("density 0.001", "sc_encode", 12.12345, 0.0124, 2000.654, 136430, 1142540)])]


def of_bench_soak():
    return [soak.table([soak.PeerGrowth(1000, 10**5, (1e10, 1e10), (1000, 1001), (1000, 1001))])]


@pytest.mark.parametrize("parts", [of_bench_comm, of_bench_chaos, of_bench_codec, of_bench_soak])
def test_no_figure_of_a_benchmark_is_cut_at_80_columns(parts):
    text = shown(*parts())
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_live_line_shows_each_peers_last_known_accuracy():
    live = LiveTable(2, 3, "run")
    for peer in (0, 1):
        for event in list(a_run(peer))[:-1]:
            known = event.event != "round" or event.round == 0
            live.take(event if known else event.model_copy(update={"accuracy_personal": None}))
    assert live.line().startswith("round 2/3, personal accuracy 50.0 %")
