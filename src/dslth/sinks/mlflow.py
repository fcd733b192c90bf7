"""MLflow: a run with the settings as parameters, and figures of each peer and of the mean as metrics by round."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from dslth.errors import DslthError
from dslth.runs.events import Event, RoundReport
from dslth.sinks.base import MOST_CURVES, About, Means, figures

__all__ = ["MLflow"]

MOST_AT_ONCE = 1000
"""Metrics that a tracking server takes in one request; parameters: a hundred."""
LONGEST = 500
"""Characters of a parameter's value."""


class MLflow:
    """Logs to the tracking server or store at ``where``, by default MLflow's own: the experiment ``dslth``."""

    def __init__(self, where: str | None, run: About) -> None:
        try:
            from mlflow.entities import Metric, Param
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise DslthError("sink mlflow takes a library: pip install 'dslth[mlflow]'") from None
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # MLflow's own default takes minutes
        self._metric = Metric
        self._client = MlflowClient(where)
        known = self._client.get_experiment_by_name("dslth")
        experiment = known.experiment_id if known else self._client.create_experiment("dslth")
        self._run = self._client.create_run(experiment, run_name=run.folder.name).info.run_id
        if run.settings is not None:
            values = dict(_flat(run.settings.model_dump(mode="json", exclude={"network", "peers"})))
            params = [Param(name, value) for name, value in values.items()]
            for start in range(0, len(params), 100):
                self._client.log_batch(self._run, params=params[start : start + 100])
        self._each, self._means = run.peers <= MOST_CURVES, Means(run.peers)
        self._held: list[Any] = []

    def emit(self, event: Event) -> None:
        """Log the figures of a round once all peers have reported it."""
        if not isinstance(event, RoundReport):
            return
        at = int(event.time * 1000)
        if self._each:
            named = {f"peer-{event.peer}/{name}": value for name, value in figures(event).items()}
            self._hold(named, at, event.round)
        for round_, means in self._means.take(event):
            self._hold(means, at, round_)
            self._send()

    def _hold(self, values: Mapping[str, float], at: int, round_: int) -> None:
        self._held += [self._metric(name, value, at, round_) for name, value in values.items()]

    def _send(self) -> None:
        for start in range(0, len(self._held), MOST_AT_ONCE):
            self._client.log_batch(self._run, metrics=self._held[start : start + MOST_AT_ONCE])
        self._held.clear()

    def close(self) -> None:
        """Log what is held, and end MLflow's run."""
        self._send()
        self._client.set_terminated(self._run)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", str(value)[:LONGEST]
