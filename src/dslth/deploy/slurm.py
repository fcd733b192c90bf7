"""Who is where in a Slurm job step, read from the environment that ``srun`` gives each task."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from dslth.errors import ConfigError

__all__ = ["Step", "expand", "step"]


@dataclass(frozen=True)
class Step:
    """A task of a job step: task ``task`` is peer ``task``, and ``hosts[i]`` is the node of task ``i``."""

    task: int
    hosts: tuple[str, ...]


def step(environment: Mapping[str, str]) -> Step | None:
    """Read the step that this process is a task of; None outside Slurm.

    Raises ConfigError if the environment does not tell which task is on which node.
    """
    if "SLURM_PROCID" not in environment:
        return None
    try:
        task = int(environment["SLURM_PROCID"])
        nodes = expand(environment["SLURM_STEP_NODELIST"])
        counts = _counts(environment["SLURM_STEP_TASKS_PER_NODE"])
    except KeyError as missing:
        raise ConfigError(f"Slurm: {missing.args[0]} is not set; start peers with srun") from None
    layout = re.split("[:,]", environment.get("SLURM_DISTRIBUTION", "block"))[0]
    if len(nodes) != len(counts) or layout not in ("block", "cyclic"):
        raise ConfigError(
            f"Slurm: cannot tell which task is on which node ({layout}); add --distribution=block to srun"
        )
    return Step(task, tuple(_dealt(nodes, counts) if layout == "cyclic" else _filled(nodes, counts)))


def _filled(nodes: list[str], counts: list[int]) -> Iterator[str]:
    for node, count in zip(nodes, counts, strict=True):
        yield from [node] * count


def _dealt(nodes: list[str], counts: list[int]) -> Iterator[str]:
    for turn in range(max(counts)):
        yield from (node for node, count in zip(nodes, counts, strict=True) if count > turn)


def _counts(text: str) -> list[int]:
    """Read tasks by node, as in ``2(x3),1``."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not found:
            raise ConfigError(f"Slurm: SLURM_STEP_TASKS_PER_NODE is {text[:60]!r}, expected numbers as in 2(x3),1")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def expand(nodes: str) -> list[str]:
    """Spell out a list of nodes, as in ``gpu1,node[08-10,12]``; raises ConfigError if it is not one."""
    names: list[str] = []
    words = re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", nodes)
    for word in words:
        parts = re.split(r"\[([^\]]*)\]", word)
        choices = [_numbers(part) if number % 2 else [part] for number, part in enumerate(parts)]
        names += ["".join(chosen) for chosen in product(*choices)]
    if not names or ",".join(words) != nodes or any(not re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in names):
        raise ConfigError(f"Slurm: {nodes[:60]!r} is not a list of nodes")
    return names


def _numbers(text: str) -> list[str]:
    """Spell out what is between brackets: numbers and ranges, with leading zeros kept."""
    numbers: list[str] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not found:
            raise ConfigError(f"Slurm: {text[:60]!r} is not a range of nodes")
        first, last = found[1], found[2] or found[1]
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return numbers
