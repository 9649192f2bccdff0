"""A real Slurm of one node in a directory of its own: munge, controller and node daemon, started for a test and stopped after it."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "srun")
CONF = """
ClusterName=one
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=1
JobRequeue=1
# a requeued job waits for its old self to be gone, and not a minute more
SchedulerParameters=sched_interval=1,batch_sched_delay=1
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class NoSlurm(Exception):
    """Slurm cannot be started here; the message says why."""


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def slurm(home: Path) -> Iterator[dict[str, str]]:
    """Start the daemons under `home` and yield the environment that finds them; raises NoSlurm."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    found = {name: shutil.which(name, path=path) for name in PROGRAMS}
    if missing := [name for name, where in found.items() if where is None]:
        raise NoSlurm(
            f"{', '.join(missing)} not installed (apt-get install munge slurmctld slurmd slurm-client)"
        )
    if os.geteuid() != 0:
        raise NoSlurm("the daemons are started as root")
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o755)
    for name in ("state", "spool"):
        (home / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    (home / "slurm.conf").write_text(CONF.format(home=home, host=host, ports=_free_ports(2)))
    # nothing here is confined by cgroups; Slurm before 23 cannot do without a plugin for them, and v1's asks for nothing
    version = subprocess.run([str(found["slurmd"]), "-V"], capture_output=True, text=True, check=True).stdout
    old = int(version.split()[-1].partition(".")[0]) < 23
    (home / "cgroup.conf").write_text(f"CgroupPlugin={'cgroup/v1' if old else 'disabled'}\n")
    key = home / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    environment = {**os.environ, "SLURM_CONF": str(home / "slurm.conf"), "PATH": path}
    daemons: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str) -> None:
        program = found[name]
        assert program is not None
        with (home / f"{name}.out").open("wb") as out:
            daemons.append(subprocess.Popen([program, *arguments], env=environment, stdout=out, stderr=out))

    try:
        start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={home}/munge.socket",
              f"--pid-file={home}/munged.pid", f"--log-file={home}/munged.log", f"--seed-file={home}/munged.seed")  # fmt: skip
        _wait(lambda: (home / "munge.socket").exists(), 10, "munged", home)
        start("slurmctld", "-D", "-f", str(home / "slurm.conf"))
        start("slurmd", "-D", "-f", str(home / "slurm.conf"), "-N", host)
        _wait(lambda: _idle(environment), 40, "slurmctld and slurmd", home)
        yield environment
    finally:
        subprocess.run(
            ["scancel", "--me", "--signal=KILL"], env=environment, check=False, capture_output=True
        )
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _idle(environment: dict[str, str]) -> bool:
    command = ["sinfo", "-h", "-o", "%t"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() == "idle"


def _wait(ready: object, seconds: float, what: str, home: Path) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ready():  # type: ignore[operator]
            return
        time.sleep(0.2)
    tails = []
    for log in [*sorted(home.glob("*.log")), *sorted(home.glob("*.out"))]:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        tails += [f"{log.name}: {lines[-1]}"] if lines else []
    raise NoSlurm(f"{what} did not come up in {seconds:.0f} s; {'; '.join(tails)}")
