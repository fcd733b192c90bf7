"""``dslth init``, ``dslth topologies``, ``dslth schema``: topology files to begin with."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dslth import config, topology
from dslth.config import DataName, DeviceConfig, FileKind, GraphName
from dslth.errors import OutputError
from dslth.show.console import err, out
from dslth.show.tables import Fitted

__all__ = ["init", "schema", "topologies"]

SCHEMA = "dslth.schema.json"


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Topology file to write.")],
    graph: Annotated[GraphName, typer.Option(help="Who talks to whom.")] = GraphName.RING,
    peers: Annotated[int, typer.Option(min=2, help="Number of peers.")] = 10,
    data: Annotated[DataName, typer.Option(help="What they learn.")] = DataName.DIGITS,
    schema: Annotated[
        bool, typer.Option("--schema", help=f"Write {SCHEMA} beside it as well, by which editors know its keys.")
    ] = False,
) -> None:
    """Write a topology file that runs as it is, with comments on what may be changed; overwrites nothing."""
    text = config.template(graph, peers, data)
    if schema:
        text = f"# yaml-language-server: $schema={SCHEMA}\n{text}"
    run = config.parse(text, f"--graph {graph} --peers {peers}")
    topology.build(run.graph, run.experiment.seed)
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
        if schema:
            (file.parent / SCHEMA).write_text(_written(config.json_schema()), encoding="utf-8")
    except FileExistsError:
        raise OutputError(f"{file} exists already; choose another name, or remove it") from None
    except OSError as error:
        raise OutputError(f"cannot write {error.filename or file}: {error.strerror}") from None
    err.print(f"wrote {file}; to run it: dslth run -t {file}", soft_wrap=True)


def topologies(
    as_json: Annotated[bool, typer.Option("--json", help="Print them, and nothing else, as JSON on stdout.")] = False,
) -> None:
    """List the topology files that come with dslth."""
    found = []
    for file in sorted(config.shipped("topologies").glob("*.yaml")):
        run = config.load(file)
        graph = topology.build(run.graph, run.experiment.seed)
        figures = {"name": file.stem, "peers": graph.peers, "links": len(graph.edges), "graph": run.graph.kind}
        experiment = run.experiment
        named = {"data": experiment.data.title, "model": experiment.model.title}
        found.append(figures | named | {"rounds": experiment.rounds})
    if as_json:
        print(json.dumps(found))  # noqa: T201
        return
    columns = {name: [str(row[name]) for row in found] for name in found[0]}
    note = "dslth run -t NAME runs one; dslth topology show NAME draws its graph"
    out.print(Fitted("topologies that come with dslth", columns, spare=("rounds", "model", "links"), note=note))


def schema(
    kind: Annotated[FileKind, typer.Argument(metavar="[KIND]", help="Of a topology, profile, experiment or study.")] = (
        FileKind.TOPOLOGY
    ),
) -> None:
    """Print the JSON schema of topology files, or of another kind of file, for editors and other programs."""
    print(_written(_schema(kind)), end="")  # noqa: T201


def _schema(kind: FileKind) -> dict[str, Any]:
    match kind:
        case FileKind.TOPOLOGY:
            return config.json_schema()
        case FileKind.PROFILE:
            return config.json_schema_of(DeviceConfig, "device profile")
        case FileKind.EXPERIMENT:
            from dslth.bench.experiments import plan as experiment

            return config.json_schema_of(experiment.Plan, kind)
        case FileKind.STUDY:
            from dslth.bench.study import plan as study

            return config.json_schema_of(study.Plan, kind)


def _written(schema: object) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
