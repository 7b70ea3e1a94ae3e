"""Counts the cores that this process may use: `cores()`, the default for numbers of processes.

A machine's cores are often shared: a container has a quota of them, a SLURM job a part, a process
an affinity. The least of these counts. Nothing here imports torch.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

# The second is set where --cpus-per-task was not given: the job's cores on this node.
_OF_A_SLURM_JOB = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")


def cores() -> int:
    """At least 1: the least of affinity, quotas of control groups, and the job's share on SLURM."""
    shares = [_affinity(), *_of_slurm(os.environ), *quotas(Path("/"))]
    return max(1, min(shares))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _of_slurm(environment: Mapping[str, str]) -> list[int]:
    given = (environment.get(name, "") for name in _OF_A_SLURM_JOB)
    return [int(text) for text in given if text.isdecimal()][:1]


def quotas(root: Path) -> Iterator[int]:
    """Whole cores, rounded up, of each quota that this process's control group or one above has.

    root: where /proc and /sys are. Version 2 keeps "QUOTA PERIOD" in cpu.max, version 1 a file for
    each, with -1 for none. Within a container the group's path may not be visible: its top is then.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        is_second = not controllers
        if not is_second and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        group = PurePosixPath(path.lstrip("/"))
        for place in (group, *group.parents):
            words = _quota(top / place, is_second)
            if len(words) == 2 and words[0].isdecimal() and int(words[1]) > 0:
                yield max(1, math.ceil(int(words[0]) / int(words[1])))


def _quota(folder: Path, is_second: bool) -> list[str]:
    if is_second:
        return _text(folder / "cpu.max").split()
    names = "cpu.cfs_quota_us", "cpu.cfs_period_us"
    return [word for name in names for word in _text(folder / name).split()]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
