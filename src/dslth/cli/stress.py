"""``dslth bench chaos``, ``resume``, ``simulate``, ``soak`` and ``fuzz``: the command line of the stress tests."""

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.progress import Progress

from dslth.cli import options
from dslth.cli.options import Changes, JsonOption, OutOption, TopologyOption
from dslth.config import Mode, Security
from dslth.engines.supervisor import Outcome, run_local
from dslth.errors import ConfigError, DslthError
from dslth.runs.folder import RunFolder
from dslth.show.console import err, out

__all__ = ["chaos", "fuzz", "resume", "simulate", "soak"]


class Keys(StrEnum):
    """Whether the peers of a run have keys."""

    NONE = Security.NONE
    CURVE = Security.CURVE


def chaos(
    topology_file: TopologyOption = "chaos10",
    changes: Annotated[Changes, "rounds", "seed", "data_dir"] = Changes(seed=1),
    every: Annotated[float, typer.Option(min=1, metavar="ROUNDS", help="Rounds between two faults, on average.")] = 6,
    out_dir: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Kill, stop and cut off peers of a run every few rounds, and compare with the same run undisturbed.

    The seed decides which faults happen to whom and in which rounds, whatever the machine's speed. Writes chaos.json,
    chaos.csv and chaos.png. Ends with 1 if a fault could not happen, if a peer does not end, waits longer than the
    deadline, or does not come back, or if mean personal accuracy is more than a point below the undisturbed run's.
    """
    settings, graph = options.read(topology_file, changes)
    if settings.experiment.mode != Mode.SYNC or settings.experiment.deadline == "none":
        raise ConfigError(f"chaos needs mode sync and a deadline in seconds; change {topology_file}")
    options.look_at_data(settings, graph)

    from dslth.bench.stress import chaos as measured  # torch is heavy: loaded only when needed
    from dslth.bench.stress import chaos_show as shown

    faults = measured.schedule(settings, graph, every)
    if not faults:
        raise ConfigError(f"no fault fits into {settings.experiment.rounds} rounds; raise --rounds or lower --every")
    folder = options.new_folder(out_dir, f"bench-chaos-{Path(topology_file).stem}").path
    quiet = run_local(settings, graph, RunFolder(folder / "undisturbed"))
    _go_on(quiet)
    undisturbed = measured.measure("undisturbed", settings, quiet)
    _say(f"undisturbed: {undisturbed.seconds:.1f} s")
    outcome, injected = measured.disturbed(settings, graph, RunFolder(folder / "disturbed"), faults)
    _go_on(outcome)
    disturbed = measured.measure("disturbed", settings, outcome, injected)
    conditions = measured.verdict(settings, faults, undisturbed, disturbed)
    record = measured.record([undisturbed, disturbed], injected, conditions, settings)
    shown.write(folder, record, [undisturbed, disturbed])
    drawn = shown.drawing(outcome, injected)
    if not shown.plot(folder, outcome, drawn):
        err.print("note: no plot, it needs matplotlib: pip install matplotlib")
    if as_json:
        print(json.dumps(record))  # noqa: T201
    else:
        for part in shown.parts(drawn, [undisturbed, disturbed], float(settings.experiment.deadline)):
            out.print(part)
        out.print(f"written into {folder}", soft_wrap=True)
    _judge("chaos", conditions)


def resume(
    topology_file: TopologyOption = "chaos10",
    changes: Annotated[Changes, "rounds", "seed", "data_dir"] = Changes(rounds=60, seed=1),
    kills: Annotated[int, typer.Option(min=1, help="Runs in which one peer is killed.")] = 20,
    whole: Annotated[int, typer.Option(min=0, help="Runs that are killed as a whole and resumed.")] = 5,
    out_dir: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Kill peers, and whole runs, at random moments, and compare the masks with those of the undisturbed run.

    Peers wait for each other without a deadline. Writes resume.json; ends with 1 if a mask differs.
    """
    settings, graph = options.read(topology_file, changes)
    experiment = settings.experiment.model_copy(update={"mode": Mode.SYNC, "deadline": "none"})
    settings = settings.model_copy(update={"experiment": experiment})
    if not experiment.checkpoint_every:
        raise ConfigError("without checkpoints no run can be resumed; set experiment.checkpoint_every")
    options.look_at_data(settings, graph)

    from dslth.bench.stress import resume as measured

    folder = options.new_folder(out_dir, f"bench-resume-{Path(topology_file).stem}").path
    trials = []
    with options.orderly():  # an interrupt leaves no run behind
        for trial in measured.trials(settings, graph, folder, kills, whole):
            trials.append(trial)
            _say(str(trial))
    record = {"settings": settings.model_dump(mode="json"), "trials": [trial.record() for trial in trials]}
    (folder / "resume.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    same = sum(trial.same for trial in trials)
    if as_json:
        print(json.dumps(record))  # noqa: T201
    else:
        out.print(f"{same} of {len(trials)} runs ended with the undisturbed run's masks; see {folder}", soft_wrap=True)
    _judge("resume", {"all masks are those of the undisturbed run": same == len(trials)})


def simulate(
    seeds: Annotated[str, typer.Option(metavar="A..B", help="The first and the last seed to play.")] = "1..1000",
    seed: Annotated[int | None, typer.Option(min=0, help="Play this seed only, and print all that happens.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Play runs of 5 to 20 peers with faults, each drawn from a seed, on a virtual network and clock.

    The peers use the real protocol; what they learn is made up. Messages are lost, doubled, swapped, late and damaged,
    connections break, peers crash and resume from checkpoints, pause, are slow or begin late. Ends with 1 if a mask
    differs from the one sent, a run without deadline from the undisturbed one, if a peer waits too long, does not end,
    no longer hears a neighbour, or if pace costs bytes; prints how to replay it.
    """
    from dslth.bench.stress import simulate as simulated

    if seed is not None:
        outcome = simulated.simulate(seed, say=None if as_json else _line)
        if not as_json:
            _line(str(outcome))
        outcomes = [outcome]
    else:
        found = re.fullmatch("([0-9]{1,15})\\.\\.([0-9]{1,15})", seeds)
        if not found or int(found[1]) > int(found[2]):
            raise ConfigError(f"--seeds {seeds[:40]}: expected the first and the last seed, as in 1..1000")
        chosen = range(int(found[1]), int(found[2]) + 1)
        outcomes = []
        with options.orderly(), Progress(console=err, transient=True) as progress:
            for outcome in progress.track(simulated.simulate_all(chosen), total=len(chosen), description="runs"):
                outcomes.append(outcome)
                if outcome.violated:
                    err.print(str(outcome), soft_wrap=True)
    failed = [outcome for outcome in outcomes if outcome.violated]
    masks = sum(outcome.masks for outcome in outcomes)
    if as_json:
        record = {"runs": len(outcomes), "masks": masks, "violations": [outcome.record() for outcome in failed]}
        print(json.dumps(record))  # noqa: T201
    else:
        out.print(f"{len(outcomes):,} runs, {masks:,} masks; an invariant was violated in {len(failed):,} runs")
    _judge("simulate", {"all invariants hold": not failed})


def soak(
    topology_file: TopologyOption = "soak3",
    changes: Annotated[Changes, "rounds", "seed", "data_dir"] = Changes(),
    out_dir: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run thousands of small rounds, and see whether memory, file descriptors or threads grow.

    Writes soak.json; ends with 1 if a peer's memory grows by 2 % or more, or its descriptors or threads at all.
    """
    settings, graph = options.read(topology_file, changes)
    options.look_at_data(settings, graph)

    from dslth.bench.stress import soak as measured

    folder = options.new_folder(out_dir, f"bench-soak-{Path(topology_file).stem}")
    outcome = measured.soak(settings, graph, folder)
    _go_on(outcome)
    found = measured.figures(settings, graph, folder)
    record = {"settings": settings.model_dump(mode="json"), "peers": [figures.record() for figures in found]}
    (folder.path / "soak.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(record))  # noqa: T201
    else:
        out.print(measured.table(found))
        out.print(
            f"{settings.experiment.rounds} rounds in {outcome.measured().seconds:.0f} s; written into {folder.path}",
            soft_wrap=True,
        )
    if outcome.failure:
        raise outcome.failure
    _judge("soak", {"nothing grew": all(figures.flat for figures in found)})


def fuzz(
    topology_file: TopologyOption = "soak3",
    changes: Annotated[Changes, "seed", "data_dir"] = Changes(),
    messages: Annotated[int, typer.Option(min=0, help="Messages of garbage to send; 0: none.")] = 100_000,
    connections: Annotated[int, typer.Option(min=0, help="Connections of raw bytes to open before them.")] = 1000,
    seconds: Annotated[float, typer.Option(min=0, help="How long to attack runs, in all; 0: not at all.")] = 600,
    security: Annotated[list[Keys] | None, typer.Option(help="Attack runs with this security [default: both].")] = None,
    attack: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Attack in this way [default: all].")] = None,
    out_dir: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send garbage to a peer of a run, then attack runs as strangers and as a neighbour that lies.

    Garbage is raw bytes, broken greetings, mutants of neighbours' messages; each must be refused and counted. Attacks
    are those of bench/stress/attacks.py, in an order drawn from the seed, with the same run without attacks as control.
    Writes fuzz.json; ends with 1 if a peer fails, a mask changes, memory or descriptors grow, a round passes the
    deadline by more than a second, or honest peers play fewer rounds than the control's.
    """
    settings, graph = options.read(topology_file, changes)

    from dslth.bench.stress import fuzz as measured
    from dslth.bench.stress import siege as sieges
    from dslth.bench.stress.attacks import ATTACKS

    names = attack or list(ATTACKS)
    if unknown := [name for name in names if name not in ATTACKS]:
        raise ConfigError(f"--attack {unknown[0]}: there is no such attack; there are: {', '.join(ATTACKS)}")
    options.look_at_data(settings, graph)
    folder = options.new_folder(out_dir, f"bench-fuzz-{Path(topology_file).stem}")
    conditions: dict[str, bool] = {}
    record: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "sieges": {}}
    if messages:
        found = measured.fuzz(settings, graph, folder, messages, connections)
        record["garbage"], conditions = found.record(), found.conditions()
        _unless(as_json, str(found))
    kinds = [Security(kind) for kind in security or Keys] if seconds else []
    for kind in kinds:
        with options.orderly():
            siege = sieges.siege(settings, folder, kind, seconds / len(kinds), names, _say)
        record["sieges"][kind] = siege.record()
        conditions |= {f"{what} (security {kind})": holds for what, holds in siege.conditions().items()}
        _unless(as_json, sieges.table(siege))
        for who, how in siege.ended.items():
            _say(f"{who} {how}")
    (folder.path / "fuzz.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(record))  # noqa: T201
    _judge("fuzz", conditions)


def _line(line: str) -> None:
    out.print(line, soft_wrap=True)


def _unless(as_json: bool, what: RenderableType) -> None:
    if not as_json:
        out.print(what)


def _go_on(outcome: Outcome) -> None:
    """End the command if a run was interrupted, or did not get as far as a report."""
    if outcome.interrupted:
        raise typer.Exit(130)
    outcome.measured()


def _judge(what: str, conditions: dict[str, bool]) -> None:
    failed = [name for name, holds in conditions.items() if not holds]
    if failed:
        raise DslthError(f"{what}: not met: {'; '.join(failed)}")


def _say(line: str) -> None:
    err.print(line)
