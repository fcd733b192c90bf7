"""Every command that README and docs show exists with its options, and is run: by a test here, or by one that is named.

Pages in ``test_docs.PAGES`` are followed block by block there.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from docs_blocks import ROOT, written
from dslth.cli import peer
from dslth.cli.main import app
from processes import ENV
from test_docs import PAGES

ALL = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + list((ROOT / "docs").rglob("*.md"))
)
"""Pages that people read."""
SHORTER = {
    "dslth run --topology mesh10.yaml --rounds 50 --out runs/mesh": ("--rounds 50", "--rounds 2"),
    "dslth run -t ring.yaml --set algorithm.lr=0.3 --out runs/slow": ("0.3", "0.3 --rounds 2"),
    "dslth run -t ring.yaml --preset mce-pl": ("mce-pl", "mce-pl --rounds 1"),
    "dslth run -t ring.yaml --transport memory": ("memory", "memory --rounds 1"),
    "dslth run -t ring.yaml --sink tensorboard": ("tensorboard", "tensorboard --rounds 1"),
    "dslth run -t thousand.yaml --engine batched": ("batched", "batched --rounds 1 --set graph.peers=20"),
    "dslth run -t paper20.yaml --data-dir DIR --preset mce-pl --graph adjacency.txt --partition counts.txt": (
        "--data-dir DIR",
        "--set data.name=digits --set model.name=mlp --rounds 1",
    ),
    "dslth sweep ring --set algorithm.lr=0.3,1 --seeds 1..5": ("1..5", "1..1 --set rounds=1"),
    "dslth bench comm -t ring.yaml": ("ring.yaml", "ring.yaml --rounds 1 --rows mce-auto,sgd-alone"),
    "dslth bench study --only digits": ("digits", "digits --cells 1"),
    "dslth bench codec": ("codec", "codec --weights 20000"),
    "dslth bench coding -t ring.yaml": ("ring.yaml", "ring.yaml --rounds 2"),
    "dslth bench scale": ("scale", "scale --engine batched --peers 10 --rounds 3"),
    "dslth bench links": ("links", "links --rounds 1 --link wifi --rows mce-auto"),
    "dslth experiment ablation": ("ablation", "ablation --quick"),
    "dslth bench scale --engine local --peers 10 --peers 50 --peers 100 --rounds 6": (
        "--peers 10 --peers 50 --peers 100 --rounds 6",
        "--peers 5 --rounds 3",
    ),
    "dslth bench speed": ("speed", "speed --model mlp --preset signed --repeats 1"),
}
"""Commands that take minutes, or data that a machine of tests has not: what the test puts in another's place."""
ELSEWHERE = {
    "make run": "test_readme.py::test_to_run_takes_no_developers_tools",  # and by .ci/run itself, as make test
    "make test": "test_readme.py::test_to_run_takes_no_developers_tools",
    "dslth --install-completion": "cli/test_files.py::test_a_shell_completes_commands_and_topologies",
    "dslth-peer --id 3 --topology ring.yaml": "runs/test_resume.py::test_peers_that_are_killed_at_any_moment",
    "dslth bench speed --data cifar10 --data-dir DIR --model cnn --theirs FILE": "bench/test_speed.py::test_other_code",
    "docker compose build && docker compose up": "engines/test_compose.py::test_the_shipped_mesh",
    "docker compose run --rm --no-deps collector dslth inspect /runs": "engines/test_compose.py::test_the_shipped_mesh",
    "docker compose down --volumes": "engines/test_compose.py::test_the_shipped_mesh",
    "dslth-peer --id 0 --topology mesh.yaml --keys keys --out run": "engines/test_namespaces.py::test_peers_on_ten",
    "dslth collect mesh.yaml --listen 'tcp://*:47200' --keys keys --out all": "deploy/test_deploy.py::test_a_collector",
    "dslth-peer ... --reports tcp://THERE:47200": "deploy/test_deploy.py::test_a_collector_ends_with_the_figures",
    "docker stack deploy --resolve-image never -c docker-compose.yml dslth": "engines/test_swarm.py::test_the_shipped",
    "docker service logs -f dslth_collector": "engines/test_swarm.py::test_the_shipped_file",
    "docker stack rm dslth": "engines/test_swarm.py::test_the_shipped_file",
    "srun -n 10 dslth-peer --topology mesh10.yaml --keys keys --out run --quiet": "engines/test_slurm.py::test_a_step",
    "dslth inspect run": "engines/test_slurm.py::test_a_step_of_ten_tasks",
    "pip install 'ray>=2.40'": "engines/test_ray.py::test_ten_actors",
    "dslth run --topology mesh10.yaml --engine ray --address HEAD:6379 --out /shared/run": "engines/test_ray.py::test_",
    "dslth k8s mesh10.yaml --image registry.example/dslth:1 > mesh.yaml": "deploy/test_deploy.py::test_kubernetes",
    "dslth experiment fidelity --graph ADJACENCY --partition COUNTS --data-dir DIR": "bench/test_experiments.py::test_",
}
"""Commands that another test runs, with its beginning."""
UNRUN = {
    "docker buildx build --platform linux/arm64 --build-arg TORCH=torch==2.13.0 --build-arg TORCH_INDEX=URL "
    "-t dslth:arm64 -f peers/Dockerfile --load .",
    "kubectl apply -f mesh.yaml",
    "kubectl logs -f job/dslth-mesh10-collector",
}
"""Commands of which the page says that nobody has run them."""


def shown(page: str) -> list[str]:
    """The commands of a page's blocks, without their comments."""
    found = re.findall(r"^```console\n(.*?)^```$", written(page), re.DOTALL | re.MULTILINE)
    lines = re.sub(r"\\\n\s+", "", "".join(found)).splitlines()
    return [" ".join(re.sub(r"\s+# .*", "", line).split()) for line in lines]


NAMES = ["README.md", *(str(page.relative_to(ROOT / "docs")) for page in ALL if page.is_relative_to(ROOT / "docs"))]
OTHERS = [name for name in NAMES if name not in PAGES]


@pytest.mark.parametrize("page", OTHERS)
def test_the_commands_of_a_page_are_run_by_a_test(page):
    runnable = set(shown("README.md")) | set(shown("performance.md"))
    for command in shown(page):
        if command in ELSEWHERE:
            file, _, name = ELSEWHERE[command].partition("::")
            assert f"\ndef {name}" in (ROOT / "tests" / file).read_text(), command
        else:
            assert command in UNRUN or command in runnable, f"{page}: no test runs: {command}"


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with what the commands name, and a place for programs: dslth as this Python has it."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "bin").mkdir()
    for program, function in (("dslth", "main"), ("dslth-peer", "peer_main")):
        call = f"import sys; from dslth.__main__ import {function}; sys.argv[0] = {program!r}; {function}()"
        (folder / "bin" / program).write_text(f'#!/bin/sh\nexec {sys.executable} -c "{call}" "$@"\n')
        (folder / "bin" / program).chmod(0o755)
    (folder / "adjacency.txt").write_text("0 1 1\n1 0 1\n1 1 0\n")
    (folder / "counts.txt").write_text("".join(f"{' '.join(['9'] * 10)}\n" for _ in range(3)))
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", ["README.md", "performance.md"])
def test_commands_work_as_written(page, there):
    env = ENV | {"PATH": f"{there / 'bin'}:{os.environ['PATH']}"}
    for command in shown(page):
        if command in ELSEWHERE:
            continue
        line = command
        if command in SHORTER:
            assert SHORTER[command][0] in command
            line = command.replace(*SHORTER[command])
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=there,
            env=env,
            capture_output=True,
            text=True,
            timeout=240,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-500:]}\n{done.stderr[-1500:]}"


def test_every_change_is_one_of_a_command_that_is_shown():
    there = set(shown("README.md")) | set(shown("performance.md"))
    assert SHORTER.keys() <= there
    assert ELSEWHERE.keys() | UNRUN <= {command for page in OTHERS for command in shown(page)}


# --- in the text ----------------------------------------------------------------------------------------------------


def commands_of(file: Path) -> set[str]:
    """All that stands in code and begins with one of dslth's programs."""
    text = file.read_text(encoding="utf-8")
    inline = re.findall(r"(?<!`)`((?:dslth|dslth-peer) [^`\n]+(?:\n[^`\n]+)?)`", text)
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = re.sub(r"\\\n\s+", "", "".join(blocks)).splitlines()
    lines = [re.sub(r"\s+# .*", "", line) for line in lines if line.startswith("dslth")]
    return {" ".join(command.split()) for command in [*inline, *lines]}


@pytest.mark.parametrize("file", ALL, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_command_and_option_that_is_named_exists(file):
    for written_ in commands_of(file):
        program, *words = shlex.split(re.sub(r"\s*[|>&].*", "", written_))
        command = typer.main.get_command(app if program == "dslth" else peer.app)
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            name = words.pop(0)
            if name.isupper() or name == "...":
                break
            assert name in command.commands, f"{written_}: there is no {name}"
            command = command.commands[name]
        known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts} | {
            "--help"
        }
        for word in words:
            option = word.partition("=")[0]
            if re.fullmatch(r"--?[a-z][a-z-]*", option):
                assert option in known, f"{written_}: {command.name} has no {option}"
