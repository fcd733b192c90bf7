"""A run's reports in other programs: what those read is what the run reported."""

import json
import math
import socket
import subprocess
import sys
import urllib.request
from contextlib import closing

import mlflow
import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families

import dslth
from dslth.errors import AddressError, ConfigError, DslthError
from dslth.runs.events import Finished, RoundReport
from dslth.runs.folder import RunFolder
from dslth.sinks import SINKS, About, opened, parse
from dslth.sinks.base import Means
from live import wait_for
from processes import ENV
from tap import free_ports

ROUNDS = 4
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # MLflow's own, of SQLAlchemy


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run that was followed by TensorBoard, MLflow and Parquet while it went."""
    folder = tmp_path_factory.mktemp("sinks")
    sinks = ["tensorboard", f"mlflow=sqlite:///{folder}/ml.db", "parquet"]
    run = dslth.run(
        "ring", model="mlp", transport="memory", rounds=ROUNDS, evaluate_every=2, out=folder / "run", sinks=sinks
    )
    return run, folder


def test_tensorboard_shows_each_peer_and_the_mean(ran):
    run, _ = ran
    port = free_ports(1)
    line = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run.folder / "tensorboard")]
    served = subprocess.Popen([*line, "--port", str(port)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:

        def ask(path):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=30) as answer:
                return json.load(answer)

        def curves():
            try:
                return ask("data/plugin/scalars/tags")
            except OSError:
                return {}

        wait_for(lambda: len(curves()) == 11, 90)
        assert set(curves()) == {"mean", *(f"peer-{peer}" for peer in range(10))}
        shown = ask("data/plugin/scalars/scalars?run=peer-3&tag=accuracy%2Fpersonal")
        mine = run.rounds[run.rounds.peer == 3].dropna(subset="accuracy_personal")
        assert [step for _, step, _ in shown] == [1, 3] == mine["round"].tolist()
        assert [value for _, _, value in shown] == pytest.approx(mine.accuracy_personal.tolist())
        assert [time for time, _, _ in shown] == pytest.approx(mine.time.tolist(), rel=0, abs=1e-3)
        means = ask("data/plugin/scalars/scalars?run=mean&tag=loss")
        assert [value for _, _, value in means] == pytest.approx(run.rounds.groupby("round").loss.mean().tolist())
    finally:
        served.terminate()
        served.communicate()


def test_mlflow_has_settings_and_figures(ran):
    run, folder = ran
    client = mlflow.MlflowClient(f"sqlite:///{folder}/ml.db")
    (logged,) = client.search_runs([client.get_experiment_by_name("dslth").experiment_id])
    assert (logged.info.run_name, logged.info.status) == ("run", "FINISHED")
    assert logged.data.params["experiment.rounds"] == str(ROUNDS)
    assert logged.data.params["experiment.algorithm.density.conv"] == "0.5"
    sent = client.get_metric_history(logged.info.run_id, "peer-7/bytes_sent/message")
    assert [int(metric.value) for metric in sent] == run.rounds[run.rounds.peer == 7].message_sent.tolist()
    assert logged.data.metrics["accuracy/personal"] == pytest.approx(run.summary.accuracy_personal)


def test_parquet_has_the_tables_of_the_run(ran):
    run, _ = ran
    pd.testing.assert_frame_equal(pd.read_parquet(run.folder / "rounds.parquet"), run.rounds)
    pd.testing.assert_frame_equal(pd.read_parquet(run.folder / "links.parquet"), run.links)


def test_a_run_that_has_ended_is_given_to_sinks_later(ran, commands):
    run, _ = ran
    done = commands.run("dslth", "sink", run.folder, "parquet=later", "tensorboard=tb")
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(pd.read_parquet(commands.folder / "later" / "rounds.parquet"), run.rounds)
    assert {path.name for path in (commands.folder / "tb").iterdir()} >= {"mean", "peer-0"}


def test_prometheus_reads_the_state_of_a_run(ran):
    run, _ = ran
    port = free_ports(1)
    events = [event for events in RunFolder(run.folder).events().values() for event in events]
    with opened([f"prometheus=127.0.0.1:{port}"], About(run.folder, 10)) as take:
        for event in events:
            take(event)

        def read():
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                families = text_string_to_metric_families(answer.read().decode())
                samples = [sample for family in families for sample in family.samples]
            return {(sample.name, *sample.labels.values()): sample.value for sample in samples}

        wait_for(lambda: read()["dslth_peers_finished",] == 10, 30)
        found = read()
    for peer in run.summary.peers:
        assert found["dslth_message_bytes_total", "sent", str(peer.id)] == peer.message_bytes_sent
        assert found["dslth_accuracy_personal", str(peer.id)] == peer.accuracy_personal
        assert found["dslth_round", str(peer.id)] == ROUNDS - 1
    with closing(socket.socket()) as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))  # it was given back


def test_refused_messages_are_counted_once(tmp_path):
    port = free_ports(1)
    common = {
        "peer": 0,
        "time": 1.0,
        "accuracy_personal": None,
        "accuracy_global": None,
        "mask_digest": "",
        "links": {},
    }
    rounds = {"density": (), "flips": None, "seconds": {}, "missing": (), "memory_bytes": 1, "loss": 1.0}
    with opened([f"prometheus=127.0.0.1:{port}"], About(tmp_path, 1)) as take:
        for number, count in enumerate((1, 1, 3)):
            take(RoundReport(round=number, refused={"corrupt": count}, **rounds, **common))
        take(Finished(rounds_completed=3, refused={"corrupt": 4}, **common))

        def count():
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                return 'dslth_refused_total{peer="0",reason="corrupt"} 4.0' in answer.read().decode()

        wait_for(count, 30)


# --- what goes wrong ------------------------------------------------------------------------------------------------


class Failing:
    """A sink that takes one report."""

    closed = 0

    def __init__(self, where, run):
        self.taken = 0

    def emit(self, event):
        self.taken += 1
        if self.taken > 1:
            raise OSError("disk full")

    def close(self):
        Failing.closed += 1
        raise OSError("still full")


def test_a_sink_that_fails_says_so_once_and_harms_nothing(ran, monkeypatch, tmp_path):
    run, _ = ran
    monkeypatch.setattr("dslth.sinks.SINKS", SINKS | {"failing": Failing})
    seen, said = [], []
    events = [event for events in RunFolder(run.folder).events().values() for event in events]
    about = About(run.folder, 10, run.settings)
    with opened(["failing", f"parquet={tmp_path}"], about, seen.append, said.append) as take:
        for event in events:
            take(event)
    assert seen == events
    assert said == ["sink failing: OSError: disk full; it is given no more reports, the run goes on"]
    assert Failing.closed == 1
    assert len(pd.read_parquet(tmp_path / "rounds.parquet")) == 10 * ROUNDS


def test_what_cannot_be_opened_is_said_before_anything_runs(tmp_path):
    about = About(tmp_path, 2)
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(AddressError, match=f"127.0.0.1:{port} is in use"),
            opened([f"prometheus=127.0.0.1:{port}"], about),
        ):
            pass
    with pytest.raises(ConfigError, match="expected HOST:PORT"), opened(["prometheus=9464"], about):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(DslthError, match="name a folder"), opened([f"parquet={tmp_path}/file/x"], about):
        pass


@pytest.mark.parametrize(("library", "name"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_a_missing_library_is_one_line(library, name, tmp_path, monkeypatch):
    for module in [module for module in sys.modules if module.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(DslthError, match=rf"pip install 'dslth\[{name}\]'"), opened([name], About(tmp_path, 2)):
        pass


def test_names_are_read_strictly(commands):
    assert parse("parquet") == ("parquet", None)
    assert parse("mlflow=http://a=b") == ("mlflow", "http://a=b")
    done = commands.run("dslth", "run", "--topology", "ring", "--sink", "tensorbord")
    assert (done.returncode, done.stdout) == (3, "")
    assert "there are tensorboard, mlflow, prometheus, parquet" in done.stderr
    assert list(commands.folder.iterdir()) == []


def test_a_mean_waits_for_all_peers():
    def report(peer, loss, accuracy):
        return RoundReport(
            peer=peer, time=1, round=0, loss=loss, accuracy_personal=accuracy, accuracy_global=None, density=(),
            flips=None, mask_digest="", links={}, seconds={}, missing=(), refused={}, memory_bytes=1,
        )  # fmt: skip

    means = Means(2)
    assert list(means.take(report(0, 1.0, 0.5))) == []
    ((number, figures),) = means.take(report(1, math.inf, None))
    assert (number, figures["loss"], figures["memory_bytes"]) == (0, math.inf, 1)
    assert "accuracy/personal" not in figures
