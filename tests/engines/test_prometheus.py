"""A run in a real Prometheus, and the queries of Grafana's panels there."""

import json
import subprocess
import urllib.parse
import urllib.request

import pytest

import dslth
from dslth.runs.events import Noticed
from dslth.runs.folder import RunFolder
from dslth.sinks import About, opened
from live import wait_for
from processes import ENV
from tap import free_ports

pytestmark = pytest.mark.engine

CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: dslth
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


@pytest.fixture
def prometheus(tmp_path):
    """A Prometheus, and where it scrapes; yields that and a function that asks it."""
    port = free_ports(2)
    (tmp_path / "prometheus.yml").write_text(CONFIG.format(port=port))
    line = ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*line, f"--web.listen-address=127.0.0.1:{port + 1}"], stdout=log, stderr=log, env=ENV
        )

    def ask(query):
        url = f"http://127.0.0.1:{port + 1}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return [float(found["value"][1]) for found in json.load(answer)["data"]["result"]]
        except ConnectionError as error:
            return [] if process.poll() is None else pytest.fail(f"{error}: {(tmp_path / 'log').read_text()}")
        except urllib.error.URLError:
            return []

    yield f"127.0.0.1:{port}", ask
    process.terminate()
    process.wait(30)


def test_every_panel_shows_something(prometheus, tmp_path, commands):
    place, ask = prometheus
    printed = commands.run("dslth", "sink", "--grafana")
    panels = json.loads(printed.stdout)["panels"]
    run = dslth.run("ring", model="mlp", transport="memory", rounds=6, evaluate_every=1, out=tmp_path / "run")
    events = [event for events in RunFolder(run.folder).events().values() for event in events]
    events.sort(key=lambda event: event.time)
    half = len(events) // 2
    with opened([f"prometheus={place}"], About(run.folder, 10)) as take:
        for event in events[:half]:
            take(event)
        wait_for(lambda: len(ask("dslth_round")) == 10)
        take(Noticed(peer=3, time=events[half].time, round=3, what="lost", neighbour=4))
        for event in events[half:]:
            take(event.model_copy(update={"refused": {"corrupt": 2}}) if hasattr(event, "refused") else event)
        wait_for(lambda: ask("dslth_peers_finished") == [10])
        wait_for(lambda: sum(ask("rate(dslth_message_bytes_total[1m])")) > 0)
        shown = {panel["title"]: [ask(target["expr"]) for target in panel["targets"]] for panel in panels}
    assert all(found for queries in shown.values() for found in queries), shown
    assert shown["Peers that are done"] == [[1]]
    assert shown["Message bytes sent"] == [[run.summary.message_bytes_sent]]
    assert shown["Personal accuracy, mean"] == [[pytest.approx(run.summary.accuracy_personal)]]
    assert shown["What was unusual, missing or refused"] == [[1], [0], [20]]
