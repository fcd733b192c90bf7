"""TensorBoard: a curve by round for each peer, and one for the mean of all."""

from pathlib import Path

from dslth.errors import DslthError
from dslth.runs.events import Event, RoundReport
from dslth.sinks.base import MOST_CURVES, About, Means, figures

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes event files below ``where``, by default the run folder's ``tensorboard``: a folder for each curve."""

    def __init__(self, where: str | None, run: About) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise DslthError("sink tensorboard takes a library: pip install 'dslth[tensorboard]'") from None
        self._make, self._place = SummaryWriter, Path(where) if where else run.folder / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}
        self._each, self._means = run.peers <= MOST_CURVES, Means(run.peers)

    def emit(self, event: Event) -> None:
        """Write a round's figures."""
        if not isinstance(event, RoundReport):
            return
        if self._each:
            self._write(f"peer-{event.peer}", event.round, figures(event), event.time)
        for round_, means in self._means.take(event):
            self._write("mean", round_, means, event.time)

    def _write(self, curve: str, round_: int, values: dict[str, float], time: float) -> None:
        if curve not in self._writers:
            self._writers[curve] = self._make(str(self._place / curve))
        for name, value in values.items():
            self._writers[curve].add_scalar(name, value, round_, walltime=time)

    def close(self) -> None:
        """Write out what is held."""
        for writer in self._writers.values():
            writer.close()
