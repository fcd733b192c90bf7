"""A job step of ten tasks on a Slurm of one node, from Debian's packages, with everything it needs in one folder."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from containers import sh, wait_for
from live import digests, printed
from tap import free_ports

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

PEERS = 10
BIN = Path(sys.executable).parent


@pytest.fixture
def slurm(tmp_path, processes):
    """The environment of a cluster that takes jobs."""
    for program in ("munged", "slurmctld", "slurmd", "srun"):
        assert shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin"), (
            f"{program} is not here: apt-get install slurm-wlm munge"
        )
    home = tmp_path / "slurm"
    for name in ("state", "spool", "munge"):
        (home / name).mkdir(parents=True)
    port = free_ports(2)
    key = home / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    socket = home / "munge" / "socket"
    munge = ["--key-file", key, "--socket", socket, "--pid-file", home / "munge/pid", "--log-file", home / "munge/log"]
    munge += ["--seed-file", home / "munge/seed"]
    configuration = home / "slurm.conf"
    configuration.write_text(
        f"""
ClusterName=dslth
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
SlurmdPort={port + 1}
AuthInfo=socket={socket}
CredType=cred/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=localhost NodeAddr=127.0.0.1 CPUs={PEERS} RealMemory=1024
PartitionName=all Nodes=localhost Default=YES State=UP
"""
    )
    environment = os.environ | {"SLURM_CONF": str(configuration), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    munged = processes("munged", "--foreground", "--force", *munge, env=environment)
    wait_for(socket.exists)
    daemons = [
        processes("slurmctld", "-D", env=environment),
        processes("slurmd", "-D", "-N", "localhost", env=environment),
    ]

    def idle():
        assert all(daemon.poll() is None for daemon in [*daemons, munged]), (home / "slurmd.log").read_text()
        return "idle" in sh("sinfo", "-h", "-o", "%t", env=environment, check=False).stdout

    wait_for(idle)
    yield environment
    for daemon in [*daemons, munged]:
        daemon.terminate()
        daemon.wait(timeout=60)


def test_a_step_of_ten_tasks_learns_the_masks_of_a_local_run(slurm, mesh_file, local_mesh, tmp_path):
    file = mesh_file({"base_port": free_ports(PEERS)})
    peers = ["dslth-peer", "--topology", file, "--out", tmp_path / "run", "--quiet", "--join-timeout", 180]
    path = {"PATH": f"{BIN}:{slurm['PATH']}"}
    sh("srun", "-n", PEERS, "--overcommit", *peers, env=slurm | path, cwd=tmp_path)
    summary = printed(sh(BIN / "dslth", "inspect", tmp_path / "run", "--json"))
    assert digests(summary) == local_mesh


def test_a_step_of_another_size_is_one_line(slurm, mesh_file, tmp_path):
    file = mesh_file({"base_port": free_ports(PEERS)})
    done = sh("srun", "-n", 1, BIN / "dslth-peer", "-t", file, "--out", tmp_path / "run", env=slurm, check=False)
    assert done.returncode == 3
    assert "srun -n 10" in done.stderr
