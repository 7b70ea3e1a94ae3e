"""A real SLURM on this machine: `with Cluster(folder) as cluster: job = cluster.submit(script)`.

slurmctld, munged and one slurmd per node run in the foreground as children of this process, with
their files under one folder and no privileges but those of whoever starts them. A node is named by
its own loopback address, so that the names of `scontrol show hostnames` can be connected to. Nodes
claim processors and GPUs that nobody enforces, and a partition `big` of 32 nodes of 8 GPUs exists
on paper only: `sbatch --test-only` answers whether a job would fit it.

    python tests/slurm/cluster.py     starts one, prints how to use it, stops it at Ctrl-C
"""

import contextlib
import ctypes
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge")
ADMIN_PATH = os.environ["PATH"] + os.pathsep + "/usr/sbin"  # where Debian puts the daemons

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits until its old credential has expired; 5 s is the least.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
JobRequeue=1
GresTypes=gpu
{nodes}
NodeName=big[1-32] NodeAddr=127.0.0.1 CPUs=96 RealMemory=900000 Gres=gpu:8 State=CLOUD
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
PartitionName=big Nodes=big[1-32] MaxTime=INFINITE State=UP
"""
# GPUs must be devices, and these two are everywhere; only nodes that run read this file.
DEVICES = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"


class Cluster:
    """SLURM with `nodes` nodes of two GPUs that are none; everything of it lies in `folder`."""

    def __init__(self, folder: Path, nodes: int = 3, processors: int = 4):
        self.folder = folder
        self.nodes = [f"127.0.0.{11 + index}" for index in range(nodes)]
        self.environment = os.environ | {
            "PATH": ADMIN_PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self._daemons: dict[str, subprocess.Popen] = {}
        self._write_files(processors)

    def _write_files(self, processors: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munged insists that others cannot replace its socket
        (self.folder / "state").mkdir()
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o400)
        controller, *ports = _free_ports(1 + len(self.nodes))
        host = socket.gethostname().partition(".")[0]
        rows = [
            f"NodeName={name} NodeHostname={host} NodeAddr={name} Port={port} CPUs={processors} "
            "RealMemory=8000 Gres=gpu:2 State=UNKNOWN"
            for name, port in zip(self.nodes, ports, strict=True)
        ]
        text = CONFIGURATION.format(
            host=host,
            controller_port=controller,
            user=getpass.getuser(),
            folder=self.folder,
            nodes="\n".join(rows),
            names=",".join(self.nodes),
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text(DEVICES)

    def __enter__(self) -> "Cluster":
        try:
            self._start_munge()
            self._start("slurmctld", "slurmctld", "-D", "-i")
            for node in self.nodes:
                self.start_node(node)
            wait_until(lambda: self._idle() == set(self.nodes), 30, self._told)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._daemons)):
            self._kill(name)

    def start_node(self, node: str) -> None:
        """Boot a node, which then reports itself to the controller."""
        (self.folder / f"spool.{node}").mkdir(exist_ok=True)
        self._start(node, "slurmd", "-D", "-N", node)

    def fail_node(self, node: str) -> None:
        """Lose a node as by a power cut; the controller, who would notice it late, is told."""
        self._kill(node)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    def restore_node(self, node: str) -> None:
        """Repair a node that `fail_node` lost."""
        self.start_node(node)
        wait_until(lambda: node in self._idle(), 30, self._told)

    def run(self, *command: str, **options) -> str:
        """The output of a command; AssertionError with all of it where it fails."""
        settings = {"env": self.environment, "text": True, "timeout": 60} | options
        done = subprocess.run(command, capture_output=True, **settings)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str, **options) -> str:
        """The job that `sbatch ARGUMENTS` makes; `options` are subprocess's, cwd for example."""
        return self.run("sbatch", "--parsable", *arguments, **options)

    def job(self, job: str) -> dict[str, str]:
        """All that the controller knows of a job, by scontrol's names: JobState, NodeList, …"""
        words = self.run("scontrol", "show", "job", "--oneliner", job).split()
        return {key: value for key, _, value in (word.partition("=") for word in words)}

    def wait(self, job: str, state: str = "COMPLETED", timeout_seconds: float = 240) -> None:
        """Until a job is in `state`; AssertionError where it ends in another one or not in time."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

        def arrived() -> bool:
            now = self.job(job)["JobState"]
            assert now == state or now not in ended, f"job {job} is {now}, not {state}"
            return now == state

        wait_until(arrived, timeout_seconds, lambda: f"job {job}: {self.job(job)}")

    def _idle(self) -> set[str]:
        try:
            rows = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()
        except AssertionError:  # the controller does not answer yet
            return set()
        return {name for name, state in map(str.split, rows) if state == "idle"}

    def _start_munge(self) -> None:
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
        options = [f"--{option}={self.folder}/munge.{end}" for option, end in files.items()]
        seed = f"--seed-file={self.folder}/munge.seed"
        # --force: it may run as root and in /tmp.
        self._start("munge", "munged", "--foreground", "--force", *options, seed)
        wait_until((self.folder / "munge.socket").exists, 10, self._told)

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("a") as log:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, preexec_fn=_bind_to_parent
            )

    def _kill(self, name: str) -> None:
        """End a daemon and all that it started, at once."""
        daemon = self._daemons.pop(name)
        family = (
            psutil.Process(daemon.pid).children(recursive=True) if daemon.poll() is None else []
        )
        daemon.kill()
        daemon.wait()
        for process in family:
            if process.is_running():
                process.kill()

    def _told(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text()[-1000:]}" for log in logs)


def _bind_to_parent() -> None:
    """In a daemon before it starts: die with its parent; stay the parent of detached processes.

    A job's steps detach themselves from slurmd; so they are still found when the node is to fail.
    """
    set_parent_death_signal, set_child_subreaper = 1, 36  # linux/prctl.h
    library = ctypes.CDLL(None)
    library.prctl(set_parent_death_signal, signal.SIGKILL)
    library.prctl(set_child_subreaper, 1)


def wait_until(condition, timeout_seconds: float, told) -> None:
    """Ask until `condition()` is true; AssertionError with `told()` when time is up."""
    end = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_seconds} s; {told()}"
        time.sleep(0.2)


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if not shutil.which(name, path=ADMIN_PATH)]


def why_not_installable() -> str:
    """Install Debian's packages where they are missing and that is allowed; else the reason."""
    if not missing_programs():
        return ""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"{', '.join(missing_programs())} missing, and only root on Debian can install them"
    quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True}
    subprocess.run(["apt-get", "update", "-qq"], **quiet)
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
    done = subprocess.run(install, text=True, **quiet)
    return f"apt-get could not install SLURM: {done.stderr.strip()}" if done.returncode else ""


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def main() -> None:
    if reason := why_not_installable():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Cluster(Path(folder)) as cluster:
        conf = cluster.environment["SLURM_CONF"]
        print(f"{cluster.run('sinfo')}\nexport SLURM_CONF={conf}\nCtrl-C stops it", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
