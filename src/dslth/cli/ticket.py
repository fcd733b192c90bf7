"""``dslth ticket``: personal models, looked at, tried, taken elsewhere and taught more."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dslth import config
from dslth.cli import options
from dslth.cli.app import App
from dslth.cli.options import JsonOption
from dslth.errors import ConfigError
from dslth.runs.folder import RunFolder
from dslth.show.console import err, out
from dslth.show.tables import new_table
from dslth.show.words import percent, thousands

if TYPE_CHECKING:
    from dslth.learning.dataset import Dataset
    from dslth.personal.figures import Evaluation
    from dslth.runs.tickets import Ticket

__all__ = ["ticket_app"]

ticket_app = App(help="Look at a personal model, use it, export it, teach it more.", no_args_is_help=True)

TicketArgument = Annotated[
    Path, typer.Argument(metavar="TICKET", help="A ticket's file, of either form; or a run folder, with --peer.")
]
PeerOption = Annotated[int | None, typer.Option("--peer", min=0, help="Whose ticket of a run folder.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="FILE:NAME", help="Own code that makes the ticket's network, as in nets.py:Net; it is run."
    ),
]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Folder of data sets, in place of the run's.")
]
CsvOption = Annotated[
    Path | None,
    typer.Option(
        "--csv", metavar="FILE", help="Own data in place of the data set: the numbers of a sample, then its label."
    ),
]
ClassesOption = Annotated[
    str, typer.Option("--classes", metavar="A,B,C", help="Only these classes of the data [default: all].")
]


@ticket_app.command()
def show(
    ticket: TicketArgument, peer: PeerOption = None, model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """Print a ticket's seed, model, and per layer what its mask keeps; and its size in each form."""
    opened = _opened(ticket, peer, model)

    from dslth.personal import figures  # torch is heavy: loaded only when needed

    layers, sizes, experiment = figures.layers(opened), figures.sizes(opened), opened.experiment
    if as_json:
        record = {
            "peer": opened.peer,
            "seed": experiment.seed,
            "model": experiment.model.model_dump(mode="json"),
            "data": experiment.data.title,
            "digest": opened.mask.digest,
            "layers": [layer.record() for layer in layers],
            "bytes": sizes,
        }
        print(json.dumps(record))  # noqa: T201
        return
    what = f"{experiment.model.title} for {experiment.data.title}, preset {experiment.preset}, seed {experiment.seed}"
    table = new_table(
        f"ticket of peer {opened.peer}: {what}", "layer", "shape", "weights", "kept", "density", "filters"
    )
    for layer in layers:
        shape, filters = "x".join(map(str, layer.shape)), f"{layer.filters_kept} of {layer.shape[0]}"
        kept = thousands(layer.kept)
        table.add_row(layer.name, shape, thousands(layer.weights), kept, percent(layer.density), filters)
    out.print(table)
    size = f"{sizes['packed']:,} packed, {sizes['compact']:,} compact, {sizes['dense']:,} as dense float32"
    out.print(f"{sum(opened.mask.ones):,} of {sum(opened.mask.sizes):,} weights kept; bytes: {size}", soft_wrap=True)


@ticket_app.command(name="eval")
def evaluate(
    ticket: TicketArgument,
    peer: PeerOption = None,
    model: ModelOption = None,
    data_dir: DataDirOption = None,
    csv_file: CsvOption = None,
    classes: ClassesOption = "",
    as_json: JsonOption = False,
) -> None:
    """Print a ticket's accuracy on the test images of its data set, class by class, or on own data.

    From a run folder also on the peer's own test set, as in the run's reports.
    """
    opened = _opened(ticket, peer, model)

    from dslth.personal import figures, nets

    net, dataset = nets.dense(opened), _data(opened, data_dir, csv_file, classes)
    record, own = figures.evaluate(net, dataset.test_images, dataset.test_labels), None
    if ticket.is_dir() and csv_file is None:
        _, graph = options.read(str(ticket / "topology.yaml"))
        own = figures.own_accuracy(opened, net, graph.peers, data_dir)
    if as_json:
        print(json.dumps(record.record() | ({"own": own} if own is not None else {})))  # noqa: T201
        return
    out.print(
        _table(f"peer {opened.peer} on {csv_file or opened.experiment.data.title}", {"accuracy": record}, dataset.names)
    )
    if own is not None:
        out.print(f"on the peer's own test set: {percent(own)}")


@ticket_app.command()
def predict(
    ticket: TicketArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Images (PNG, JPEG), or CSV files of bytes.")],
    peer: PeerOption = None,
    model: ModelOption = None,
    as_csv: Annotated[bool, typer.Option("--as-csv", help="Print the predictions, and nothing else, as CSV.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Classify images. Image files are scaled to the network's size; a CSV file has an image a row, in bytes."""
    opened = _opened(ticket, peer, model)

    from dslth.personal import figures

    rows = figures.predictions(opened, files)
    if as_json:
        print(json.dumps([row.record() for row in rows]))  # noqa: T201
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, list(rows[0].record()), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.record() for row in rows)
    else:
        table = new_table(f"peer {opened.peer}, {opened.experiment.model.title}", "image", "class", "probability")
        for row in rows:
            table.add_row(row.name, row.word or str(row.label), percent(row.probability))
        out.print(table)


@ticket_app.command()
def export(
    ticket: TicketArgument,
    peer: PeerOption = None,
    model: ModelOption = None,
    onnx: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an ONNX model: bytes of images in, logits out; checked if possible."),
    ] = None,
    dense: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a plain network's state dict, as safetensors.")
    ] = None,
    compact: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write seed, settings and the coded mask: a few kB.")
    ] = None,
    smaller: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an ONNX model without the dead filters of a structured ticket."),
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Write a ticket in forms that leave the house."""
    if onnx is dense is compact is smaller is None:
        raise ConfigError("name a file to write with --onnx, --dense, --compact or --smaller")
    opened = _opened(ticket, peer, model)

    from dslth.personal import compact as packed
    from dslth.personal import export, inputs, nets

    if compact is not None:
        _written(compact, packed.store(opened, compact))
    if dense is not None:
        _written(dense, export.store_dense(opened, dense))
    if onnx is smaller is None:
        return
    net, given, images = nets.dense(opened), inputs.inputs_of(opened), export.test_images(opened, data_dir)
    models = {onnx: net} if onnx is not None else {}
    if smaller is not None:
        models[smaller], figures = export.shrink(net, images)
        out.print(str(figures), soft_wrap=True)
    for path, small in models.items():
        _written(path, export.store_onnx(small, given, path), f"ONNX, opset {export.OPSET}")
        out.print(str(export.check_onnx(net, given, path, images) or export.UNCHECKED), soft_wrap=True)


@ticket_app.command()
def apply(
    ticket: TicketArgument,
    out_file: Annotated[Path, typer.Option("--out", metavar="FILE", help="The new ticket, as safetensors.")],
    peer: PeerOption = None,
    model: ModelOption = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to learn, alone; as many local steps as in the run.")] = 20,
    lr: Annotated[
        float | None, typer.Option(min=1e-9, metavar="LR", help="Learning rate, in place of the run's.")
    ] = None,
    data_dir: DataDirOption = None,
    csv_file: CsvOption = None,
    classes: ClassesOption = "",
    as_json: JsonOption = False,
) -> None:
    """Teach a ticket on local data, and write a new ticket; print the accuracy before and after.

    It starts from scores that give the ticket's mask, and keeps as many weights of each layer. Local data are the
    training images of its data set, or own data of which every fifth image is for testing.
    """
    opened = _opened(ticket, peer, model)

    from dslth.personal import apply, figures, nets
    from dslth.runs import tickets

    dataset = _data(opened, data_dir, csv_file, classes)
    learned = apply.fine_tuned(opened, dataset.train_images, dataset.train_labels, rounds, lr)
    tickets.store(learned, out_file)
    before, after = (
        figures.evaluate(nets.dense(one), dataset.test_images, dataset.test_labels) for one in (opened, learned)
    )
    flips = sum((learned.mask ^ opened.mask).ones) / sum(opened.mask.sizes)
    if as_json:
        record = {"before": before.record(), "after": after.record(), "flips": flips, "rounds": rounds}
        print(json.dumps(record))  # noqa: T201
        return
    out.print(_table(f"peer {opened.peer}, {rounds} rounds", {"before": before, "after": after}, dataset.names))
    taught = f"taught on {len(dataset.train_labels):,} images of {csv_file or opened.experiment.data.title}"
    out.print(f"{out_file}: {taught}, {percent(flips)} of the mask flipped", soft_wrap=True)


def _written(path: Path, size: int, what: str = "") -> None:
    out.print(f"{path}: {size:,} bytes{what and f', {what}'}", soft_wrap=True)


def _opened(path: Path, peer: int | None, model: str | None) -> "Ticket":
    """Read the ticket that is meant; ``model`` makes its network if that is own code."""
    if path.is_dir():
        if peer is None:
            raise ConfigError(f"{path} is a run folder; say whose ticket of it with --peer")
        path = RunFolder(path).ticket(peer)
    elif peer is not None:
        raise ConfigError(f"--peer {peer}: {path} is not a run folder")

    from dslth.personal import compact

    return compact.load(path, model and config.MODEL_NAME.check(model))


def _data(ticket: "Ticket", data_dir: Path | None, csv_file: Path | None, classes: str) -> "Dataset":
    """Read the data that options name."""
    from dslth.personal import inputs

    try:
        wanted = [int(number) for number in classes.split(",")] if classes else []
    except ValueError:
        raise ConfigError(f"--classes {classes[:40]}: expected numbers, as in 0,3,5") from None
    if csv_file is not None:
        dataset = inputs.read_labelled(csv_file, inputs.inputs_of(ticket))
    else:
        dataset = inputs.read_dataset(ticket, data_dir)
    if dataset.note:
        err.print(f"note: {dataset.note}")
    return inputs.chosen(dataset, wanted)


def _table(title: str, columns: "dict[str, Evaluation]", names: Sequence[str]) -> Any:
    """Make a table of accuracies, a column each, over the same test images; ``names`` are those of classes, if any."""
    table = new_table(title, "class", "images", *columns)
    found = list(columns.values())
    for classes in zip(*(evaluation.classes for evaluation in found), strict=True):
        label, images = classes[0].label, thousands(classes[0].images)
        shares = (percent(c.right / c.images) for c in classes)
        table.add_row(names[label] if names else str(label), images, *shares)
    table.add_row("all", thousands(found[0].images), *(percent(evaluation.accuracy) for evaluation in found))
    return table
