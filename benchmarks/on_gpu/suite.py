"""The tests for GPUs of the repository, as one case."""

import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

from on_gpu.cases import LeftOut, Options, Report

ROOT = Path(__file__).parents[2]


def tests(options: Options, report: Report, paths: list[str]) -> None:
    """`pytest -m gpu` of the paths; how many passed, failed and were skipped, and the failures."""
    results = options.work / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    command += [f"--junitxml={results}", *paths]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment)
    if not results.exists():
        raise LeftOut(f"pytest ended with status {done.returncode}; its output is in the log")
    cases = xml.parse(results).getroot().iter("testcase")
    failures, counts = {}, {"passed": 0, "failed": 0, "skipped": 0}
    for case in cases:
        fault = case.find("failure") if case.find("failure") is not None else case.find("error")
        if fault is not None:
            failures[case.get("name")] = (fault.get("message") or "")[:500]
        is_skipped = case.find("skipped") is not None
        counts["failed" if fault is not None else "skipped" if is_skipped else "passed"] += 1
    report.note(**counts, failures=failures)
    report.check("tests that failed", float(counts["failed"]), 0.0)
