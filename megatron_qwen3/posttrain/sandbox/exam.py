"""Judges tests of a program's functions, such as `assert add(1, 2) == 3`, out of its reach.

    report = examine(sandbox, program, ["assert add(1, 2) == 3"])
    report.reason    # "": all passed; else the first that did not, and why

The program runs in one sandbox, the tests in another. In the tests the program's names are remote
objects: a call sends copies of the arguments, and returns data. So a program never sees expected
values, tests, their comparisons or their result, which carries a token unknown to it. As arguments
are copies, a test of a function's effect on its argument fails.
"""

import ast
import builtins
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_qwen3.posttrain.sandbox.harness import beside_the_program
from megatron_qwen3.posttrain.sandbox.limits import CLOSED, ProgramLimits, ProgramOutcome
from megatron_qwen3.posttrain.sandbox.pool import Sandbox
from megatron_qwen3.posttrain.sandbox.process import SandboxedProgram, pipe

_CALLS = Path(__file__).with_name("calls.py")


@dataclass(frozen=True)
class ExamReport:
    """reason: why the program failed; "" where it passed. failure: why that is unknown, or ""."""

    reason: str = ""
    failure: str = ""


def examine(
    sandbox: Sandbox, program: str, tests: Sequence[str], limits: ProgramLimits | None = None
) -> ExamReport:
    """The report on tests, which run one after another in one namespace up to the first failure.
    limits: of all tests together. SyntaxError where they are not valid Python."""
    limits = limits or sandbox.limits
    token = secrets.token_hex(16)
    told = {"tests": list(tests), "names": names(tests), "token": token}
    source = _CALLS.read_text(encoding="utf-8")
    asked, asks = pipe()
    said, says = pipe()
    asking = SandboxedProgram(
        source,
        json.dumps(told).encode(),
        arguments=("ask", str(asks), str(said)),
        descriptors=(asks, said),
    )
    answering = SandboxedProgram(
        program,
        harness=beside_the_program(source),
        arguments=("answer", str(asked), str(says)),
        descriptors=(asked, says),
    )
    of_tests, of_program = sandbox.run_pair(asking, answering, limits)
    return _report(tests, token, of_tests, of_program, limits)


def names(tests: Sequence[str]) -> list[str]:
    """Names that tests use but neither they nor Python define. SyntaxError: no valid Python."""
    used: set[str] = set()
    defined: set[str] = set(vars(builtins))
    for text in tests:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.arg):
                defined.add(node.arg)
            elif isinstance(node, ast.alias):
                defined.add((node.asname or node.name).partition(".")[0])
            elif isinstance(node, ast.ExceptHandler) and node.name:
                defined.add(node.name)
    return sorted(used - defined)


def _report(
    tests: Sequence[str],
    token: str,
    of_tests: ProgramOutcome,
    of_program: ProgramOutcome,
    limits: ProgramLimits,
) -> ExamReport:
    report = _last_line(of_tests.stdout, token)
    if failure := of_tests.failure or (not report.get("is_ready") and of_program.failure):
        return ExamReport(failure=failure)
    reached = reason_of(of_program, limits) or ("" if report else reason_of(of_tests, limits))
    if not report:
        last = " ".join(of_tests.stderr.split())[-200:]
        return ExamReport(reached, "" if reached else f"the tests ended early: {last}")
    if not report["reason"]:
        return ExamReport()
    if of_program.failure:  # its results are unknown
        return ExamReport(failure=of_program.failure)
    if not report["test"]:
        return ExamReport(reached or f"the program fails: {report['reason']}"[:300])
    place = f"test {report['test']} of {len(tests)}"
    text = " ".join(tests[report["test"] - 1].split())
    last = f"; {report['last']}" if report["last"] else ""
    return ExamReport(f"{place}: {reached or report['reason']}{last}: {text}"[:500])


def _last_line(output: str, token: str) -> dict[str, Any]:
    """The report that the side of the tests printed last; {} where it printed none."""
    last = output.rstrip("\n").rpartition("\n")[2]
    return dict(json.loads(last)) if last.startswith(json.dumps({"token": token})[:-1]) else {}


def reason_of(outcome: ProgramOutcome, limits: ProgramLimits) -> str:
    """The limit that ended a program, in words; "" where none did."""
    return {
        "": "",
        CLOSED: "",
        "time": f"it took over {limits.seconds:g} s",
        "cpu": f"it took over {limits.cpu_seconds} s of a processor",
        "memory": f"it took over {limits.memory_bytes >> 20} MiB of memory",
        "output": f"it wrote over {limits.output_bytes >> 10} KiB",
    }[outcome.killed_by]
