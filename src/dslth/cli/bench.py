"""``dslth bench``: the command line of the benchmarks, which are imported only when they run."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from dslth.cli import options, others, stress
from dslth.cli.app import App
from dslth.cli.options import Changes, JsonOption, OutOption, TopologyOption, TransportOption
from dslth.config import DataName, EngineName, LinkName, ModelName, Preset, TransportName
from dslth.engines.base import end_on_signals
from dslth.errors import OutputError
from dslth.show.console import Terminal, err, out
from dslth.stop import Stop

__all__ = ["bench_app"]

bench_app = App(help="Measure: communication cost, codecs, speed, scale, links, faults.", no_args_is_help=True)
for command in (stress.chaos, stress.resume, stress.simulate, stress.soak, stress.fuzz):
    bench_app.command()(command)
bench_app.command()(others.export)
bench_app.command("import")(others.import_)


@bench_app.command()
def comm(
    topology_file: TopologyOption = "ring",
    changes: Annotated[Changes, "rounds", "seed", "graph", "partition", "preset", "data_dir"] = Changes(),
    rows: Annotated[str | None, typer.Option(metavar="A,B,C", help="Rows to run [default: all].")] = None,
    target: Annotated[
        float | None, typer.Option(min=0, max=1, help="Show the bytes to this mean personal accuracy, too.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose each row's values, by runs on samples that its peers hold out.")
    ] = False,
    theirs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Figures of other people's code on this topology, to show too.")
    ] = None,
    transport: TransportOption = TransportName.ZEROMQ,
    out_dir: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare MCE-PL with each codec, without exchange, its ablations, and dense or sparse baselines.

    Every row is a run of all peers on this machine; over memory there are no link bytes.
    Writes comm.csv, comm.json, comm.md, accuracy.png and bits.png beside the rows' run folders.
    """
    settings, graph = options.read(topology_file, changes)
    options.look_at_data(settings, graph)

    from dslth.bench import comm, show  # torch is heavy: loaded only when needed

    selected, others_say = comm.chosen(rows), others.told(theirs, topology_file) if theirs else ()
    folder = options.new_folder(out_dir, f"bench-comm-{Path(topology_file).stem}").path
    stop = Stop()
    measured = []
    with end_on_signals(stop):  # between two rows too: finished rows are written
        for figures in comm.run_rows(
            selected, settings, graph, folder / "rows", stop, transport=transport, tune=tune, say=_say
        ):
            measured.append(figures)
            compared = comm.compare(measured, target)
            show.write(compared, settings.model_dump(mode="json"), target, folder, others_say)
    if not measured:
        err.print("interrupted before the first row was done")
        raise typer.Exit(130)
    if not show.plot(compared, folder):
        err.print("note: no plots, they need matplotlib: pip install matplotlib")
    if as_json:
        print(json.dumps(show.as_json(compared, settings.model_dump(mode="json"), target, others_say)))  # noqa: T201
    else:
        page = out if out.is_terminal else Terminal(width=100)
        for table in show.tables(compared, target, others_say):
            page.print(table)
        out.print(f"written into {folder}", soft_wrap=True)
    if len(measured) < len(selected):
        err.print("interrupted")
        raise typer.Exit(130)


@bench_app.command()
def study(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Study: a path, or a name that comes with dslth.")] = (
        "tables"
    ),
    changes: Annotated[Changes, "data_dir"] = Changes(),
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Part or row to run, may be repeated [default: all].")
    ] = None,
    cells: Annotated[int | None, typer.Option(min=1, help="End after so many cells.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Begin no cell after so many minutes.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Run nothing: tables and pictures of what is there.")] = False,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to write or go on with [default: runs/study-FILE]."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare all methods, each tuned on each data set by held-out training samples, with several seeds.

    It can be interrupted: called again, it goes on with the cells that are not finished, or whose settings changed.
    Writes a JSON file for each cell, and tables.md and frontier.png for each data set. What
    ``dslth bench import`` has put into the folder is shown too, marked as theirs.
    """
    from dslth.bench.cells import Cells  # torch is heavy: loaded only when needed
    from dslth.bench.study import plan, work
    from dslth.bench.study import show as shown
    from dslth.bench.theirs import kept

    planned, name = plan.read(file), Path(file).stem
    folder = out_dir or Path("runs") / f"study-{name}"
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--out {folder} is not a folder; choose another name, or remove it")
    whole = work.Study(planned, Cells(folder, f"dslth bench study {name}"), changes.overrides())
    left, stop = 0, Stop()
    if not show:
        for part in sorted(planned.chosen(only or [])[0]):
            options.look_at_data(*whole.runs[part], virtual=True)
        with end_on_signals(stop):
            mine = folder / f"run-{os.getpid()}"  # two sessions may share the folder, for different parts or rows
            left = whole.run(only or [], mine, work.Limits(stop, cells, minutes), _say)
    standings, theirs = whole.standings(), kept(folder)
    if not shown.write(whole, standings, folder, theirs):
        err.print("note: no pictures, they need matplotlib: pip install matplotlib")
    if as_json:
        print(json.dumps(shown.as_json(whole, standings)))  # noqa: T201
    else:
        page = out if out.is_terminal else Terminal(width=130)
        for table in shown.tables(whole, standings, theirs):
            page.print(table)
        out.print(f"written into {folder}", soft_wrap=True)
    if left:
        err.print(f"{left} cells are left; the same command goes on")
    if stop.is_set():
        raise typer.Exit(130)


@bench_app.command()
def speed(
    name: Annotated[DataName, typer.Option("--data", help="Data set.")] = DataName.DIGITS,
    data_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of data sets.")] = None,
    model: Annotated[list[ModelName] | None, typer.Option(help="Network, may be repeated [default: all].")] = None,
    preset: Annotated[list[Preset] | None, typer.Option(help="Preset, may be repeated [default: all].")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds to measure; the least of each phase counts.")] = 10,
    their_step: Annotated[
        Path | None,
        typer.Option(
            "--theirs", metavar="FILE", help="Python file with a function step(): other code, to time beside."
        ),
    ] = None,
    out_dir: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure each phase of a round, beside a dense step of the same network; and a slowed peer's bytes.

    Writes speed.csv, speed.json and speed.png.
    """
    from dslth.bench import speed as measured  # torch is heavy: only who measures loads it

    other = measured.theirs(their_step) if their_step else None
    if not other:
        err.print("note: no row for the authors' step; --theirs names a Python file whose step() runs it")
    folder = options.new_folder(out_dir, f"bench-speed-{name}").path
    figures = []
    for network in model or ModelName:
        for recipe in preset or Preset:
            err.print(f"{network} {recipe}")
            figures += measured.measure(name, network, recipe, folder, repeats, other, data_dir)
    paces = measured.pace(folder)
    measured.write(figures, paces, folder)
    if not measured.plot(figures, folder):
        err.print("note: no plot; install matplotlib for it: pip install matplotlib")
    if as_json:
        print(json.dumps(measured.as_json(figures, paces)))  # noqa: T201
    else:
        for table in measured.tables(figures, paces):
            out.print(table)
        out.print(f"written to {folder}", soft_wrap=True)


@bench_app.command()
def scale(
    peers: Annotated[
        list[int] | None,
        typer.Option(min=5, help="Number of peers, may be repeated [default: 10 to 200, batched 100 to 5,000]."),
    ] = None,
    engine: Annotated[
        list[EngineName] | None, typer.Option(help="local or batched, may be repeated [default: both].")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds of each run.")] = 10,
    out_dir: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what a peer costs as runs grow: seconds a round, time to the first round, memory, bytes.

    Digits, four neighbours each, 128 samples each. Writes scale.csv, scale.json and scale.png beside the run folders.
    """
    from dslth.bench import scale as measured

    folder = options.new_folder(out_dir, "bench-scale").path
    engines = engine or list(measured.SIZES)
    if others := [name for name in engines if name not in measured.SIZES]:
        raise typer.BadParameter(f"--engine {others[0]} is not measured here")
    sizes = [(name, count) for name in engines for count in peers or measured.SIZES[name]]
    rows: list[measured.Row] = []
    stop = Stop()
    with end_on_signals(stop):  # between two rows too: finished rows are written
        try:
            for row in measured.measure(sizes, rounds, folder / "runs", stop):
                rows.append(row)
                err.print(f"{row.engine}, {row.peers} peers: {row.round_seconds:.2f} s a round")
        finally:  # and those before an error
            if rows:
                measured.write(rows, folder)
    if rows and not measured.plot(rows, folder):
        err.print("note: no plot; install matplotlib for it: pip install matplotlib")
    if rows and as_json:
        print(json.dumps(measured.as_json(rows)))  # noqa: T201
    elif rows:
        out.print(measured.table(rows))
        out.print(f"written into {folder}", soft_wrap=True)
    if len(rows) < len(sizes):
        err.print("interrupted")
        raise typer.Exit(130)


@bench_app.command()
def links(
    topology_file: TopologyOption = "ring",
    changes: Annotated[Changes, "rounds", "seed", "graph", "partition", "preset", "data_dir"] = Changes(),
    link: Annotated[
        list[LinkName] | None, typer.Option(help="Link between peers, may be repeated [default: all but none].")
    ] = None,
    rows: Annotated[str, typer.Option(metavar="A,B,C", help="Rows to run, of dslth bench comm.")] = "mce-auto,dpsgd",
    target: Annotated[float, typer.Option(min=0, max=1, help="Mean personal accuracy to reach.")] = 0.9,
    out_dir: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how long it takes to learn over LoRa, NB-IoT, LTE-M, Wi-Fi and Ethernet, in virtual time.

    Masks beside dense float32 gossip. Writes links.csv, links.json and links.png beside the rows' run folders.
    """
    settings, graph = options.read(topology_file, changes)
    options.look_at_data(settings, graph, virtual=True)

    from dslth.bench import comm
    from dslth.bench import links as measured

    selected, chosen = comm.chosen(rows), link or [name for name in LinkName if name is not LinkName.NONE]
    folder = options.new_folder(out_dir, f"bench-links-{Path(topology_file).stem}").path
    found: list[measured.OverLink] = []
    stop = Stop()
    with end_on_signals(stop):  # between two rows too: finished rows are written
        for each in measured.run_links(chosen, selected, settings, graph, target, folder / "runs", stop, _say):
            found.append(each)
            measured.write(found, settings, target, folder)
    if found and not measured.plot(found, folder):
        err.print("note: no plot; install matplotlib for it: pip install matplotlib")
    if found and as_json:
        print(json.dumps(measured.as_json(found, settings, target)))  # noqa: T201
    elif found:
        out.print(measured.table(found, target))
        out.print(f"written into {folder}", soft_wrap=True)
    if len(found) < len(chosen) * len(selected):
        err.print("interrupted")
        raise typer.Exit(130)


@bench_app.command()
def codec(
    weights: Annotated[int, typer.Option(min=1000, help="Weights of a mask.")] = 1_200_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the masks.")] = 1,
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write codec.csv and codec.json into.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure size against entropy and speed of each mask codec, beside zstd and a sparse bit code."""
    if out_dir is not None:
        options.new_folder(out_dir, "codec")

    from dslth.bench import codec as measured

    figures = measured.measure(weights, seed, _say)
    if out_dir is not None:
        measured.write(figures, out_dir)
    if as_json:
        print(json.dumps(measured.rows(figures)))  # noqa: T201
    else:
        out.print(measured.table(figures))


@bench_app.command()
def memory(
    topology_file: TopologyOption = "ring",
    changes: Annotated[Changes, "rounds", "seed", "graph", "preset", "data_dir"] = Changes(),
    out_dir: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what memory the peers of a run take together, beside what is predicted before a run.

    Runs them as processes of this machine, into a run folder; writes memory.csv and memory.json beside its files.
    """
    settings, graph = options.read(topology_file, changes)
    options.look_at_data(settings, graph)
    folder = options.new_folder(out_dir, f"bench-memory-{Path(topology_file).stem}").path

    from dslth.bench import memory as measured
    from dslth.bench import results

    with options.orderly():
        figure = measured.measure(settings, graph, folder)
    results.write(folder, "memory", measured.as_json(figure), [measured.as_json(figure)])
    if as_json:
        print(json.dumps(measured.as_json(figure)))  # noqa: T201
    else:
        out.print(measured.table(figure))


@bench_app.command()
def coding(
    topology_file: TopologyOption = "ring",
    changes: Annotated[Changes, "rounds", "seed", "preset", "codec", "data_dir"] = Changes(),
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write coding.csv and coding.json into.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what coding masks costs a peer in each round of a run, beside what learning costs it.

    All peers of the topology learn in step in this process, without sockets.
    """
    settings, graph = options.read(topology_file, changes)
    options.look_at_data(settings, graph)
    if out_dir is not None:
        options.new_folder(out_dir, "coding")

    from dslth.bench import coding as measured

    figures = measured.measure(settings, graph, _say)
    if out_dir is not None:
        measured.write(figures, out_dir)
    if as_json:
        print(json.dumps(measured.rows(figures)))  # noqa: T201
    else:
        out.print(measured.table(figures))


def _say(line: str) -> None:
    err.print(line, soft_wrap=True)
