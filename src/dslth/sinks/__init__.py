"""Other programs that a run's reports go to while it goes, or afterwards: the registry of sinks.

A sink runs in a thread of its own. One that fails says so once, and the run goes on without it.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from queue import SimpleQueue

from dslth.config import plugins
from dslth.errors import ConfigError, DslthError
from dslth.runs.events import Event
from dslth.runs.sinks import Sink
from dslth.sinks.base import About
from dslth.sinks.mlflow import MLflow
from dslth.sinks.parquet import Parquet
from dslth.sinks.prometheus import Prometheus
from dslth.sinks.tensorboard import TensorBoard
from dslth.terminal import say

__all__ = ["SINKS", "About", "opened", "parse"]

LAST_SECONDS = 30.0
"""How long the end of a run waits for a sink that has not taken all reports yet."""

Open = Callable[[str | None, About], Sink]
"""Opens a sink: where its reports go (None: its own default), and what the run is."""

SINKS: Mapping[str, Open] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "prometheus": Prometheus,
    "parquet": Parquet,
}


def parse(text: str) -> tuple[str, str | None]:
    """Read ``NAME`` or ``NAME=WHERE``; raises ConfigError if there is no such sink."""
    name, _, where = text.partition("=")
    if name not in SINKS and name not in plugins.found("sinks"):
        there = ", ".join([*SINKS, *sorted(plugins.found("sinks"))])
        raise ConfigError(f"sink {name!r:.80}: there is none of that name; there are {there}")
    return name, where or None


@contextmanager
def opened(
    names: Iterable[str],
    run: About,
    watch: Callable[[Event], None] = lambda event: None,
    failed: Callable[[str], None] = lambda text: say(f"dslth: {text}"),
) -> Iterator[Callable[[Event], None]]:
    """Open sinks, each ``NAME`` or ``NAME=WHERE``; yield what passes a report to ``watch``, and then to all of them.

    A sink that fails later is given no more reports, and ``failed`` is told in a line.

    Raises ConfigError for a name that there is not, DslthError where a sink's library is missing or its place cannot
    be used: now, before peers start.
    """
    with ExitStack() as stack:
        apart = [stack.enter_context(_apart(*parse(name), run, failed)) for name in names]

        def take(event: Event) -> None:
            watch(event)
            for emit in apart:
                emit(event)

        yield take


@contextmanager
def _apart(
    name: str, where: str | None, run: About, failed: Callable[[str], None]
) -> Iterator[Callable[[Event], None]]:
    """Open a sink, and yield what passes a report to it in a thread of its own."""
    make: Open = SINKS[name] if name in SINKS else plugins.loaded("sinks", name)
    try:
        sink = make(where, run)
    except DslthError:
        raise
    except Exception as error:
        raise DslthError(f"sink {name}: {_told(error)}") from None
    waiting: SimpleQueue[Event | None] = SimpleQueue()

    def work() -> None:
        try:
            while (event := waiting.get()) is not None:
                sink.emit(event)
            sink.close()
        except Exception as error:  # of a program or a network that is not ours
            failed(f"sink {name}: {_told(error)}; it is given no more reports, the run goes on")
            with suppress(Exception):
                sink.close()

    thread = threading.Thread(target=work, name=f"dslth-sink-{name}", daemon=True)
    thread.start()

    def emit(event: Event) -> None:
        if thread.is_alive():
            waiting.put(event)

    try:
        yield emit
    finally:
        waiting.put(None)
        thread.join(LAST_SECONDS)
        if thread.is_alive():
            failed(f"sink {name} has not taken all reports in {LAST_SECONDS:.0f} s, and is left behind")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
