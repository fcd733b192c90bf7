"""dslth from Python: run peers, look at what they did, use their tickets. What ``dslth`` exports is documented here."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dslth import config
from dslth import topology as graphs
from dslth.config import EngineName, RunConfig, TransportName
from dslth.engines.base import preflight
from dslth.engines.batched import Batched
from dslth.engines.supervisor import Outcome, run_local
from dslth.errors import ConfigError, DataError
from dslth.learning import code, own_data
from dslth.report import page
from dslth.runs import frames
from dslth.runs.events import Event, RoundReport
from dslth.runs.folder import Launch, RunFolder
from dslth.runs.summary import Summary, rounds_of, summarise
from dslth.show.live import LiveTable, follow
from dslth.sinks import About, opened, parse
from dslth.topology import Topology

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import nn

    from dslth.config import Inputs
    from dslth.runs.tickets import Ticket

__all__ = ["Model", "Run", "Topology", "load", "run"]

Name = TypeVar("Name", EngineName, TransportName)
DATA = "data.npz"
"""Where arrays that are given to ``run`` lie in the run folder."""


def run(
    topology: "str | Path | Mapping[str, Any] | Topology | nx.Graph[Any]",
    *,
    model: Any = None,
    data: Any = None,
    out: str | Path | None = None,
    engine: str = "local",
    transport: str = "zeromq",
    on_round: Callable[[RoundReport], None] | None = None,
    sinks: Sequence[str] = (),
    progress: bool = False,
    report: bool = False,
    join_timeout: float = 60.0,
    **experiment: Any,
) -> "Run":
    """Run all peers on this machine until they are done, and return what they did.

    Args:
        topology: A topology file's path, the name of a shipped one, its keys as a mapping, a Topology, or a networkx
            graph, whose nodes become peers 0, 1, 2 ... in their order.
        model: The name of a network (``"cnn"``), a class or function that makes a ``torch.nn.Module`` (or its name, as
            in ``"./nets.py:Net"``), or the ``experiment.model`` section as a mapping. It is called with ``shape`` and
            ``classes`` if it has parameters of these names. Peers import it from its file.
        data: The name of a data set, the path of own data, arrays ``(x, y)`` or ``(x, y, x_test, y_test)``, a pandas
            DataFrame with a column ``label``, a torch ``Dataset`` of samples and labels or a pair of them (training,
            test), or the ``experiment.data`` section as a mapping.
        out: The run folder, new or empty; one under ``runs/`` if None.
        engine: ``local``: a process each; ``batched``: a few processes for thousands of peers.
        transport: ``zeromq``: real sockets; ``memory``: threads of this process.
        on_round: Called with the report of each peer's round as it comes. An error in it ends the run, and is raised.
        sinks: Other programs that follow the run, each ``NAME`` or ``NAME=WHERE``, as in ``["tensorboard"]``.
        progress: Show the live table of ``dslth run``.
        report: Write a page with pictures of the run, ``report.html``, into its folder; takes ``dslth[report]``.
        join_timeout: Seconds that peers wait for each other at the start.
        experiment: Other keys of the ``experiment`` section, such as ``rounds=20``, ``seed=1``,
            ``algorithm={"lr": 0.3}``; they win over the file's.

    Raises:
        DslthError: Settings, data or network do not fit, or peers failed. What was measured stays in the folder.
        KeyboardInterrupt: Ctrl-C. The peers have ended properly and can be resumed: ``dslth run --resume FOLDER``.

    """
    how, way = _chosen("engine", EngineName, engine), _chosen("transport", TransportName, transport)
    _check_call(how, on_round, sinks, report=report)
    settings = _settings(topology, {**experiment, **_section("model", _model(model))})
    graph = graphs.build(settings.graph, settings.experiment.seed)
    virtual, memory = how == EngineName.BATCHED, way == TransportName.MEMORY
    folder = RunFolder.new(out, str(topology) if isinstance(topology, str | Path) else "run")
    try:
        settings = _with_data(settings, data, folder.path)
        preflight(settings, graph, virtual=virtual)
    except BaseException:  # nothing has run: the same folder is free for the next try
        (folder.path / DATA).unlink(missing_ok=True)
        with suppress(OSError):
            folder.path.rmdir()
        raise

    table = LiveTable(graph.peers, settings.experiment.rounds, folder.path.name)
    about = About(folder.path, graph.peers, settings)
    with follow(table, quiet=not progress) as show, opened(sinks, about, show) as send:

        def watch(event: Event) -> None:
            send(event)
            if on_round is not None and isinstance(event, RoundReport):
                on_round(event)

        outcome = run_local(
            settings,
            graph,
            folder,
            transport=way,
            join_timeout=join_timeout,
            watch=watch,
            restart=not (virtual or memory),
            orphans=False,
            engine=Batched if virtual else None,
            launch=Launch(transport=way, engine=how, join_timeout=join_timeout),
        )
    if report and outcome.summary:
        page.add_to(folder.path)
    return _ended(outcome, settings)


def load(folder: str | Path, model: Any = None) -> "Run":
    """Return a run from its folder, be it finished, stopped or going on; ``model`` makes its network if it is own code.

    Raises MissingFileError if the folder holds no reports.
    """
    opened = Run(Path(folder), None if model is None else _code(model))
    opened.summary  # noqa: B018  (an error now, not later)
    return opened


class Run:
    """A run: its folder, its figures, and its tickets."""

    def __init__(self, folder: Path, model: str | None = None) -> None:
        self.folder, self._model = folder, model

    def __repr__(self) -> str:
        """Say what it is in a line."""
        figures = self.summary
        learned = "" if figures.accuracy_personal is None else f", accuracy {figures.accuracy_personal:.1%}"
        return f"<Run {self.folder}: {len(figures.peers)} peers, {figures.rounds} rounds{learned}>"

    @cached_property
    def summary(self) -> Summary:
        """The figures of the run, as in ``summary.json``."""
        return summarise(RunFolder(self.folder))

    @cached_property
    def topology(self) -> Topology:
        """The graph of its peers."""
        settings = self.settings
        return graphs.build(settings.graph, settings.experiment.seed)

    @cached_property
    def settings(self) -> RunConfig:
        """The topology file as resolved."""
        return config.load(self.folder / "topology.yaml")

    @cached_property
    def rounds(self) -> "pd.DataFrame":
        """A row for each peer and round: loss, accuracies (NaN where it was not evaluated), bytes sent, seconds."""
        return frames.frame(frames.rounds(self._reports()), ["peer", "round"])

    @cached_property
    def links(self) -> "pd.DataFrame":
        """A row for each peer, round and neighbour: payload, message and link bytes, sent and received."""
        return frames.frame(frames.links(self._reports()), ["peer", "round", "neighbour"])

    @cached_property
    def happenings(self) -> "pd.DataFrame":
        """A row for each unusual thing, in the order of time; ``dslth.runs.events.Happening`` explains each word."""
        columns = ["time", "peer", "round", "what", "neighbour", "detail"]
        return frames.frame((happened.model_dump(mode="json") for happened in self.summary.happenings), columns)

    @cached_property
    def tickets(self) -> "Mapping[int, Model]":
        """The personal models by peer; those that have finished."""
        folder = RunFolder(self.folder)
        peers = (peer.id for peer in self.summary.peers)
        return {peer: Model(folder.ticket(peer), self._model) for peer in peers if folder.ticket(peer).is_file()}

    def plot(self, *others: "Run") -> "Figure":
        """Draw accuracy by round and by message bytes, beside that of other runs: the mean and range of all peers."""
        from dslth.show.plots import accuracy

        runs = (self, *others)
        short = len({run.folder.name for run in runs}) == len(runs)
        return accuracy([(run.folder.name if short else str(run.folder), run.rounds) for run in runs])

    def _reports(self) -> Iterator[RoundReport]:
        for events in RunFolder(self.folder).events().values():
            yield from rounds_of(events)


class Model:
    """A personal model, from its ticket: a frozen random network and the mask that a peer learned over it.

    ``path`` is the ticket's file, of either form; ``model`` makes its network if that is own code.
    """

    def __init__(self, path: str | Path, model: Any = None) -> None:
        self.path, self._code = Path(path), None if model is None else _code(model)

    @cached_property
    def ticket(self) -> "Ticket":
        """What is in the file."""
        from dslth.personal import compact

        return compact.load(self.path, self._code)

    @cached_property
    def inputs(self) -> "Inputs":
        """What the network is shown, and what it tells apart."""
        from dslth.personal.inputs import inputs_of

        return inputs_of(self.ticket)

    @cached_property
    def module(self) -> "nn.Module":
        """A plain torch module with the masked weights; input: samples as people have them, output: logits."""
        from dslth.personal import nets

        return nets.Classifier(nets.dense(self.ticket), self.inputs).eval()

    def logits(self, samples: Any) -> NDArray[np.float32]:
        """Return logits (n, classes) of samples (n, ...) as the data have them: bytes, features or tokens."""
        import torch

        x = np.ascontiguousarray(samples, self.inputs.number)
        if x.size % prod(self.inputs.shape):
            raise DataError(f"samples of the shape {x.shape[1:]}; this network is shown {self.inputs}")
        x = x.reshape(-1, *self.inputs.shape)
        with torch.inference_mode():
            scores: NDArray[np.float32] = self.module(torch.from_numpy(x)).numpy()
        return scores

    def predict(self, samples: Any) -> Any:
        """Return the class of each sample, an array (n,): its name if classes have names, else its number."""
        numbers = self.logits(samples).argmax(1)
        return np.asarray(self.inputs.names)[numbers] if self.inputs.names else numbers

    def accuracy(self, samples: Any, labels: Any) -> float:
        """Return the share of samples whose class is that of ``labels``, given by name or number as predicted."""
        return float((self.predict(samples) == np.asarray(labels)).mean())

    def onnx(self, path: str | Path) -> None:
        """Write an ONNX model, its normalisation included; raises DslthError without the package onnx."""
        from dslth.personal import export, nets

        export.store_onnx(nets.dense(self.ticket), self.inputs, Path(path))

    def compact(self, path: str | Path) -> int:
        """Write the compact form: seed, settings and the coded mask; return its bytes."""
        from dslth.personal import compact

        return compact.store(self.ticket, Path(path))


def _ended(outcome: Outcome, settings: RunConfig) -> Run:
    """Return a run that has gone well; raises what ended it otherwise."""
    if outcome.interrupted:
        raise KeyboardInterrupt(f"what was measured is in {outcome.folder.path}")
    if outcome.failure is not None:
        raise outcome.failure
    return Run(outcome.folder.path, settings.experiment.model.name if settings.experiment.model.own else None)


# --- what is given to run -------------------------------------------------------------------------------------------


def _check_call(engine: EngineName, on_round: Any, sinks: Sequence[str], *, report: bool) -> None:
    if code.importing():
        raise ConfigError(
            "dslth.run was called while a peer's network was imported from the file that calls it: put the call under "
            "'if __name__ == \"__main__\":', or the network into a file of its own"
        )
    if engine == EngineName.RAY:
        raise ConfigError("dslth.run has the engines local and batched; Ray is that of: dslth run --engine ray")
    if on_round is not None and not callable(on_round):
        raise ConfigError(f"on_round: {type(on_round).__name__}; expected a function that takes a round's report")
    for sink in sinks:
        parse(sink)
    if report:
        page.check()


def _chosen(what: str, names: type[Name], given: str) -> Name:
    try:
        return names(given)
    except ValueError:
        raise ConfigError(f"{what}: {given!r:.80}; there are {', '.join(names)}") from None


def _settings(topology: Any, experiment: dict[str, Any]) -> RunConfig:
    if isinstance(topology, str | Path):
        return config.load(topology, {"experiment": experiment})
    if isinstance(topology, Mapping):
        return config.from_keys(config.merge(topology, {"experiment": experiment}))
    if not isinstance(topology, Topology) and not hasattr(topology, "edges"):
        raise ConfigError(f"topology: {type(topology).__name__}; expected a file, a name, keys, or a graph")
    if getattr(topology, "is_directed", bool)():
        raise ConfigError("topology: a directed graph; links of peers go both ways: topology.to_undirected()")
    graph = topology if isinstance(topology, Topology) else Topology.from_networkx(topology)
    return config.from_keys({"graph": graph.to_config().model_dump(), "experiment": experiment})


def _section(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value if isinstance(value, Mapping) else {"name": value}}


def _model(model: Any) -> Any:
    return model if model is None or isinstance(model, Mapping) else _code(model)


def _code(model: Any) -> str:
    """Return the name of a network, or of the code that makes one: peers import it by that name."""
    if isinstance(model, str):
        file, colon, factory = model.rpartition(":")
        return f"{Path(file).resolve()}{colon}{factory}" if file.endswith(".py") else model
    name = getattr(model, "__qualname__", "")
    if not callable(model) or not name.isidentifier():
        raise ConfigError(
            f"model: {model!r:.80} has no name that peers can import; give a class or a function that is defined at "
            "the top of a file"
        )
    module = model.__module__
    try:
        file = inspect.getsourcefile(sys.modules[module]) or ""
    except (TypeError, KeyError):  # built in, or typed in: a notebook, a prompt
        file = ""
    if not Path(file).is_file():
        raise ConfigError(
            f"model: {name} was typed into a notebook or a prompt, where peers cannot import it; write it into a file "
            "('%%writefile nets.py' does that in a notebook), and import it from there"
        )
    return f"{module if '.' in module else Path(file).resolve()}:{name}"  # one of a package imports its neighbours


def _with_data(settings: RunConfig, data: Any, folder: Path) -> RunConfig:
    """Return the settings with data that are named, or that are written into the run folder first."""
    if data is None:
        return settings
    if isinstance(data, str | Path):
        named = str(data) in list(config.DataName)
        keys: Mapping[str, Any] = {"name": str(data)} if named else {"path": str(data)}
    elif isinstance(data, Mapping):
        keys = data
    else:
        arrays = _arrays(data)
        try:
            with (folder / DATA).open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
        except (OSError, ValueError) as error:
            raise DataError(f"data: cannot be written to {folder / DATA}: {error}") from None
        keys = {"path": str(folder / DATA)}
    before = settings.experiment.model_dump()
    merged = config.merge({"data": before["data"]}, {"data": dict(keys)})
    return config.from_keys({**settings.model_dump(exclude_none=True), "experiment": before | merged})


def _arrays(data: Any) -> dict[str, NDArray[Any]]:
    """Return the arrays of a DataFrame or of a tuple, by the names that own data have in a file."""
    if hasattr(data, "columns"):
        if "label" not in data.columns:
            raise DataError(f"data: the table has no column 'label', only {', '.join(map(str, data.columns[:10]))}")
        labels = data["label"].to_numpy()
        words = labels.astype(str) if labels.dtype == object else labels
        return {"x": own_data.columns("data", data.drop(columns="label")), "y": words}
    from torch.utils.data import Dataset

    parts = data if isinstance(data, tuple) else (data,)
    if len(parts) <= 2 and all(isinstance(part, Dataset) for part in parts):
        ends = zip(("", "_test"), parts, strict=False)
        return {f"{name}{end}": array for end, part in ends for name, array in _samples(part).items()}
    if isinstance(data, tuple) and len(data) in (2, 4):
        named = zip(("x", "y", "x_test", "y_test"), data, strict=False)
        return {name: np.asarray(array) for name, array in named}
    raise DataError(
        f"data: {type(data).__name__}; expected a name, a path, arrays (x, y) or (x, y, x_test, y_test), a DataFrame, "
        "a torch Dataset, or the keys of experiment.data"
    )


def _samples(dataset: Any) -> dict[str, NDArray[Any]]:
    """Read all samples of a torch ``Dataset``, be they tensors, arrays or images."""
    try:
        read = [dataset[number] for number in range(len(dataset))]
        xs, ys = ([np.asarray(part) for part in column] for column in zip(*read, strict=True))
        x = np.stack(xs)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"data: {type(dataset).__name__}: expected a length, and pairs of a sample and its label, all samples of "
            f"one shape: {error}"
        ) from None
    images = x.dtype == np.uint8 and x.ndim == 4 and hasattr(read[0][0], "getbands")  # Pillow's: channels come last
    return {"x": x.transpose(0, 3, 1, 2) if images else x, "y": np.array([label.item() for label in ys])}
