"""Verifies programs: an answer's last block of code must pass all tests of its task.

    code(answer, tests=[{"input": "1 2\\n", "output": "3\\n"}])    # a program of standard input
    code(answer, tests=["assert add(1, 2) == 3"])                  # functions

Programs run only in the sandbox. Their output is compared here, and assertions are judged in a
sandbox of their own (sandbox/exam.py): a program never sees the expected results.
"""

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.sandbox import ProgramLimits, Sandbox
from megatron_qwen3.posttrain.sandbox.exam import examine, names, reason_of
from megatron_qwen3.posttrain.sandbox.limits import CLOSED
from megatron_qwen3.posttrain.verifiers.final import CannotJudge

SECONDS = 6.0
_WALL = 3  # wall-clock seconds per processor second: the machine has other work
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*")
_TAGS = ("python", "python3", "py", "")

Test = dict[str, Any] | str


def code(
    answer: str,
    *,
    tests: list[dict[str, Any] | str],
    language: Literal["python"] = "python",
    seconds: float = SECONDS,
    tolerance: float = 0.0,
) -> str:
    """The answer's last block of code passes every test.

    tests: {"input": text, "output": text}, one program's standard input and output, or Python with
    assertions about the program's functions. seconds: of processor time, for each input, and for
    all assertions together. tolerance: of numbers in outputs, absolute or relative; white space at
    ends of lines and empty lines at the end do not count.
    """
    pairs, asserts = _sorted(tests)
    limits = _limits(seconds)
    sandbox = _ready()
    program, reason = block(answer)
    if reason:
        return reason
    for number, (given, wanted) in enumerate(pairs, 1):
        if reason := _fault(sandbox, limits, program, given, wanted, tolerance):
            return f"input {number} of {len(pairs)}: {reason}"
    if not asserts:
        return ""
    report = examine(sandbox, program, asserts, limits)
    if report.failure:
        raise CannotJudge(f"sandbox: {report.failure}")
    return report.reason


def load() -> None:
    """Start the sandbox once; CannotJudge where it does not work."""
    _ready()


def most_seconds(tests: Sequence[Test], seconds: float) -> float:
    """The time limit of all tests of an answer together."""
    runs = sum(not isinstance(test, str) for test in tests)
    return (runs + any(isinstance(test, str) for test in tests)) * _limits(seconds).seconds


def block(answer: str) -> tuple[str, str]:
    """(the last block of code in Markdown's fences, ""), or ("", why there is none).

    Blocks of another language do not count, nor unlabelled ones where some are labelled Python.
    """
    blocks: list[tuple[str, str]] = []
    fence: re.Match[str] | None = None
    lines: list[str] = []
    for line in answer.splitlines():
        found = _FENCE.fullmatch(line)
        if fence is None:
            fence, lines = found, []
        elif found and not found[3] and found[2].startswith(fence[2]):
            blocks.append((fence[3].lower(), "\n".join(lines) + "\n"))
            fence = None
        else:
            lines.append(line.removeprefix(fence[1]))
    tag = fence[3].lower() if fence else None
    if tag in _TAGS:
        return "", "the last block of code is not closed"
    for wanted in (_TAGS[:-1], _TAGS[-1:]):
        if of_language := [text for tag, text in blocks if tag in wanted]:
            return of_language[-1], ""
    return "", "no block of Python code in the answer"


def _sorted(tests: Sequence[Test]) -> tuple[list[tuple[str, str]], list[str]]:
    """(input, output) pairs, and assertions; CannotJudge where no program could fail them."""
    asserts = [test for test in tests if isinstance(test, str)]
    pairs = []
    for test in tests:
        if not isinstance(test, str):
            if test.keys() != {"input", "output"} or {type(t) for t in test.values()} != {str}:
                raise CannotJudge(
                    f"tests: {test!r:.80} is none; valid: an object of input and output, which are "
                    "texts, or a text of Python"
                )
            pairs.append((test["input"], test["output"]))
    if not tests:
        raise CannotJudge("tests is an empty list, which every program would pass")
    try:
        if asserts and not names(asserts):
            raise CannotJudge(f"tests: {asserts[0]!r:.80} uses nothing of the program")
    except SyntaxError as error:
        raise CannotJudge(f"tests are no Python: {error}") from None
    return pairs, asserts


def _limits(seconds: float) -> ProgramLimits:
    if not 0 < seconds < 3600:
        raise CannotJudge(f"seconds = {seconds}; valid: above 0, below 3600")
    return ProgramLimits(seconds=_WALL * seconds, cpu_seconds=math.ceil(seconds))


def _fault(
    sandbox: Sandbox, limits: ProgramLimits, program: str, given: str, wanted: str, tolerance: float
) -> str:
    """How the program's output differs from the expected one; "" where it does not."""
    outcome = sandbox.run(program, given, limits)
    if outcome.failure or outcome.killed_by == CLOSED:
        raise CannotJudge(f"sandbox: {outcome.failure or CLOSED}")
    if outcome.status is None:
        return reason_of(outcome, limits)
    if outcome.status:
        last = " ".join(outcome.stderr.strip().splitlines()[-1:])
        return f"it ends with status {outcome.status}: {last}"[:300]
    got = _lines(outcome.stdout)
    if len(got) != len(_lines(wanted)):
        return f"it writes {len(got)} lines, not {len(_lines(wanted))}"
    for number, (one, other) in enumerate(zip(got, _lines(wanted), strict=True), 1):
        if one != other and not _is_near(one, other, tolerance):
            return f"line {number} is {one!r:.80}, not {other!r:.80}"
    return ""


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _is_near(one: str, other: str, tolerance: float) -> bool:
    """Whether two lines have the same words, and numbers within the tolerance."""
    if not tolerance or len(one.split()) != len(other.split()):
        return False
    pairs = zip(one.split(), other.split(), strict=True)
    return all(a == b or _are_near(a, b, tolerance) for a, b in pairs)


def _are_near(one: str, other: str, tolerance: float) -> bool:
    try:
        return math.isclose(float(one), float(other), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False


def _ready() -> Sandbox:
    found = _sandbox()
    if isinstance(found, ConfigError):
        raise CannotJudge(str(found))
    return found


@cache
def _sandbox() -> Sandbox | ConfigError:
    """This process's sandbox, open until it ends; one program at a time, as a worker needs."""
    try:
        return Sandbox(workers=1).__enter__()
    except ConfigError as error:
        return error
