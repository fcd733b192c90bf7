"""``dslth bench export`` and ``import``: a run's data for other people's code, and the figures that it reached."""

from pathlib import Path
from typing import Annotated

import typer

from dslth.bench.theirs import KEPT, Theirs, keep, read
from dslth.cli import options
from dslth.cli.options import Changes, TopologyArgument
from dslth.errors import ConfigError
from dslth.show.console import out
from dslth.show.tables import Fitted
from dslth.show.words import amount, percent

__all__ = ["export", "import_", "told"]


def export(
    topology_file: TopologyArgument,
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write, new or empty.")],
    changes: Annotated[Changes, "seed", "graph", "partition", "preset", "data_dir"] = Changes(),
) -> None:
    """Write the samples of a run's peers in the layout of PFLlib's data sets.

    Other people's methods can then be run on exactly the same split, and their figures imported.
    """
    settings, graph = options.read(topology_file, changes)
    options.look_at_data(settings, graph, virtual=True)
    place = options.new_folder(folder, "export").path

    from dslth.bench import pfllib  # torch is heavy: loaded only when needed

    training, testing = pfllib.export(settings, graph, Path(topology_file).stem, place)
    out.print(
        f"{graph.peers} peers, {training:,} training and {testing:,} test samples written into {place}; as a folder "
        f"under PFLlib's dataset/ it is run by: python main.py -data {place.name} -nc {graph.peers}",
        soft_wrap=True,
    )


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Figures as JSON, see docs/communication.md.")],
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of results to keep them in.")],
) -> None:
    """Check figures that other people's code reached, and keep them beside our own, marked as theirs.

    They replace what was imported before of the same method and topology.
    """
    everything = keep(read(file), results)
    columns = {
        "row": [each.name for each in everything],
        "topology": [each.topology for each in everything],
        "personal": [percent(each.mean) for each in everything],
        "seeds": [str(len(each.accuracy)) for each in everything],
        "messages": [amount(each.message_bytes) for each in everything],
    }
    out.print(Fitted("figures of others", columns, note=" ".join(each.note for each in everything)))
    out.print(f"written into {results / KEPT}", soft_wrap=True)


def told(file: Path, topology_file: str) -> tuple[Theirs, ...]:
    """Read what others reached on a topology file's data; raises DslthError, also where there is nothing."""
    figures = read(file)
    of_it = tuple(each for each in figures if each.topology == Path(topology_file).stem)
    if not of_it:
        known = ", ".join(sorted({each.topology for each in figures})) or "none"
        raise ConfigError(f"{file}: no figures of topology {Path(topology_file).stem}; there are those of {known}")
    return of_it
