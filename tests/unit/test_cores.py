"""Every default number of processes is this process's share of the machine, asked in one place."""

import os
import re
from pathlib import Path

import pytest

from megatron_qwen3 import cores
from megatron_qwen3.cores import quotas

ROOT = Path(__file__).resolve().parents[2]
ASKED = re.compile(r"\bos\.(?:cpu_count|sched_getaffinity)\b")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Eight cores that are all ours."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cores, "quotas", lambda _: iter(()))
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("task", "node", "quota", "expected"),
    [
        (None, None, [], 8),
        ("2", "6", [], 2),
        (None, "6", [], 6),
        ("16", None, [], 8),
        (None, None, [3, 5], 3),
        ("many", None, [], 8),
    ],
)
def test_the_least_share_counts(monkeypatch, task, node, quota, expected):
    monkeypatch.setattr(cores, "quotas", lambda _: iter(quota))
    for name, value in (("SLURM_CPUS_PER_TASK", task), ("SLURM_CPUS_ON_NODE", node)):
        if value:
            monkeypatch.setenv(name, value)
    assert cores.cores() == expected


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/job/step", {"job/step/cpu.max": "max 100000", "job/cpu.max": "250000 100000"}, [3]),
        ("0::/", {"cpu.max": "50000 100000"}, [1]),
        ("0::/not/to/be/seen", {"cpu.max": "400000 100000\n"}, [4]),
        (
            "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x",
            {"cpu,cpuacct/cpu.cfs_quota_us": "150000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            [2],
        ),
        ("5:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ("0::/a", {"a/cpu.max": "garbage"}, []),
        ("no group", {}, []),
        (None, {}, []),
    ],
)
def test_quotas_of_both_versions_of_control_groups_are_read(tmp_path, groups, files, expected):
    if groups:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert list(quotas(tmp_path)) == expected


def test_nothing_else_asks_for_the_machines_cores():
    folders = ("megatron_qwen3", "data_prep", "tools", "benchmarks", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    asking = [path for path in files if ASKED.search(path.read_text(encoding="utf-8"))]
    assert len(files) > 200
    assert asking == [ROOT / "megatron_qwen3/cores.py"]
