"""What the commands that show a run share: its title, its tables."""

from contextlib import suppress
from pathlib import Path

from dslth import config
from dslth.config import EngineName, RunConfig
from dslth.errors import DslthError
from dslth.learning.partition import VALIDATED
from dslth.runs.folder import RunFolder
from dslth.runs.summary import Summary
from dslth.show import tables, timeline
from dslth.show.console import err, out
from dslth.show.words import unlike

__all__ = ["show", "title"]


def title(topology_file: str, settings: RunConfig) -> str:
    """Return the title of a run's table."""
    experiment = settings.experiment
    what = f"{experiment.model.title} on {experiment.data.title}, preset {experiment.preset}, seed {experiment.seed}"
    return f"{Path(topology_file).stem}: {what}"


def show(folder: RunFolder, summary: Summary) -> None:
    """Print the tables of a run."""
    if ignored := summary.lines_ignored:
        place = folder.path / "peers"
        err.print(f"note: {ignored} lines under {place} are no reports of their peer; left out", soft_wrap=True)
    out.print(tables.peer_table(folder, summary))
    out.print(tables.totals(summary, virtual=folder.launch().engine == EngineName.BATCHED))
    if _validated(folder):
        out.print(f"note: {VALIDATED}", soft_wrap=True)
    if said := unlike(summary):
        out.print(f"note: {said}", soft_wrap=True)
    if (happened := timeline.show(summary, folder.launched())) is not None:
        out.print(happened)


def _validated(folder: RunFolder) -> bool:
    """Return whether a run's file says that its peers are evaluated on validation samples."""
    with suppress(DslthError):  # a folder of collected reports has no file
        return config.load(folder.path / "topology.yaml").experiment.data.validation > 0
    return False
