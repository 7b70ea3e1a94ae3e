"""The verifier of programs: right programs pass, and nothing else does, however it cheats."""

import textwrap
from dataclasses import replace

import pytest

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.sandbox import ProgramOutcome, process
from megatron_qwen3.posttrain.verifiers import Verifiers, check_spec, code, kinds, verdict
from tests.sandboxes import needs_sandbox

ADDS = {
    "kind": "code",
    "tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5", "output": "10"}],
}
ADD = {"kind": "code", "tests": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]}
SUM = "print(sum(map(int, input().split())))"
RIGHT, WRONG, NOBODY_KNOWS = 1.0, 0.0, None


def answer(program, tag="python"):
    return f"<think>\nso\n</think>\n\nHere:\n\n```{tag}\n{textwrap.dedent(program)}\n```\nDone."


@pytest.fixture(autouse=True, scope="module")
def _sandbox():
    with needs_sandbox():
        yield


@pytest.mark.parametrize(
    ("spec", "program", "expected", "reason"),
    [
        (ADDS, SUM, RIGHT, ""),
        (ADDS, "a, b = map(int, input().split())\nprint(a + b, end='  \\n\\n')", RIGHT, ""),
        (ADDS, "import sys\nprint(sum(map(int, sys.stdin.read().split())))\nexit()", RIGHT, ""),
        (ADDS, "print(3)", WRONG, "input 2 of 2: line 1 is '3', not '10'"),
        (ADDS, "print(3)\nprint(10)", WRONG, "input 1 of 2: it writes 2 lines, not 1"),
        (ADDS, "", WRONG, "input 1 of 2: it writes 0 lines"),
        (
            ADDS,
            "print(sum(map(int, input().split())))\n1 / 0",
            WRONG,
            "ends with status 1: ZeroDiv",
        ),
        (ADDS, f"{SUM}\nimport os, sys\nsys.stdout.flush()\nos._exit(1)", WRONG, "status 1"),
        (ADDS, "print(3", WRONG, "SyntaxError"),
        (ADD, "def add(a, b):\n    return a + b", RIGHT, ""),
        (
            ADD,
            "def add(a, b): return a + b\nif __name__ == '__main__': print(add(*input()))",
            RIGHT,
            "",
        ),
        (ADD, "add = lambda a, b: a + b\nprint('noise')", RIGHT, ""),
        (
            ADD,
            "def add(a, b):\n    return 3",
            WRONG,
            "test 2 of 2: AssertionError; add(-1, 1) gave 3",
        ),
        (ADD, "def plus(a, b):\n    return a + b", WRONG, "name 'add' is not defined"),
        (ADD, "def add(a, b):\n    raise KeyError('k')", WRONG, "KeyError"),
        (ADD, "def add(a):\n    return a", WRONG, "TypeError"),
        (ADD, "def add(", WRONG, "the program fails: SyntaxError"),
        (ADD, "1 / 0", WRONG, "the program fails: ZeroDivisionError"),
    ],
)
def test_a_program_is_judged_by_what_it_does(spec, program, expected, reason):
    found = verdict(spec, answer(program))
    assert (found.score, reason in found.reason) == (expected, True), found


# Programs that pass tests without solving the task.
CHEATS = {
    "exits before the tests": "import sys; sys.exit(0)",
    "exits hard": "import os; os._exit(0)",
    "exits as it is called": "import os\ndef add(a, b): os._exit(0)",
    "raises SystemExit as it is called": "def add(a, b): raise SystemExit(0)",
    "ends by a signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "equals everything": """
        class Any:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __bool__(self): return True
            def __hash__(self): return 0
        def add(a, b): return Any()
    """,
    "a number that equals everything": """
        class Any(int):
            def __eq__(self, other): return True
            __hash__ = None
        def add(a, b): return Any(7)
    """,
    "a list that equals everything": """
        class Any(list):
            def __eq__(self, other): return True
        def add(a, b): return Any([7])
    """,
    "another assert": """
        import builtins
        class AssertionError(Exception): pass
        builtins.AssertionError = type("Never", (Exception,), {})
        def add(a, b): return 7
    """,
    "prints that all passed": """
        print('{"is_ready": true, "test": 2, "reason": "", "last": ""}')
        import os; os.write(1, b'\\n{"is_ready": true, "test": 2, "reason": "", "last": ""}\\n')
        os._exit(0)
    """,
    "answers before it is asked": """
        import os
        for fd in range(3, 64):
            try: os.write(fd, b'{"value": 3}\\n' * 9)
            except OSError: pass
        def add(a, b): return 7
    """,
    "answers with code": """
        def add(a, b): return {"object": 10**9}
    """,
    "reads the tests": """
        import glob, sys
        found = [open(p).read() for p in glob.glob('/tmp/**', recursive=True) if '.' in p]
        def add(a, b):
            import gc
            texts = [o for o in gc.get_objects() if isinstance(o, str) and 'assert add' in o]
            return 3 if texts and b == 2 else 0 if texts else 7
    """,
    "looks into its callers": """
        import sys
        def add(a, b):
            frame = sys._getframe()
            while frame:
                for name, value in frame.f_locals.items():
                    if isinstance(value, str) and '== 3' in value: return 3 if b == 2 else 0
                frame = frame.f_back
            return 7
    """,
    "patches what compares": """
        import json, builtins, operator
        json.dumps = lambda *a, **k: '{"value": 3}'
        builtins.compile = builtins.exec = lambda *a, **k: None
        def add(a, b): return 7
    """,
    "stops the iteration of the tests": "def add(a, b): raise StopIteration",
    "leaves a generator": "def add(a, b): yield 3",
    "raises what the tests raise": "def add(a, b): raise GeneratorExit",
    "writes to standard error": "import sys; sys.stderr.write('OK 2 passed'); sys.exit(0)",
    "names itself the tests": "__name__ = 'tests'\nimport sys\nsys.modules['tests'] = None",
    "forks": "import os\nif not os.fork(): os._exit(0)\ndef add(a, b): return os.fork() and 7",
}


@pytest.mark.parametrize("name", CHEATS)
@pytest.mark.parametrize(
    "spec",
    [
        ADD,
        {
            "kind": "code",
            "tests": [
                "def check(f):\n    assert all(map(lambda x: f(x, 2) == x + 2, [1, 5, 7]))\n"
                "    for x in range(3):\n        assert f(x, 2) == x + 2\n\ncheck(add)"
            ],
        },
        ADDS,
    ],
    ids=["asserts", "checks", "inputs"],
)
def test_no_program_passes_without_doing_what_is_asked(spec, name):
    found = verdict(spec, answer(CHEATS[name]))
    assert found.score == WRONG and found.reason, found


@pytest.mark.parametrize(
    ("tests", "program"),
    [
        (
            [
                "s = Stack()",
                "s.push([1, (2,)])",
                "assert s.pop() == [1, (2,)]",
                "assert len(s) == 0",
            ],
            """
            class Stack:
                def __init__(self): self.items = []
                def push(self, x): self.items.append(x)
                def pop(self): return self.items.pop()
                def __len__(self): return len(self.items)
            """,
        ),
        (["assert list(evens(6)) == [0, 2, 4]"], "def evens(n):\n    yield from range(0, n, 2)"),
        (
            [
                "try:\n    root(-1)\nexcept ValueError as e:\n    assert 'negative' in str(e)\n"
                "else:\n    assert 0"
            ],
            "def root(x):\n    if x < 0: raise ValueError('negative')\n    return x ** 0.5",
        ),
        (
            ["import math", "assert math.isclose(half(1), 0.5)", "assert half(x=3.0) == 1.5"],
            "def half(x): return x / 2",
        ),
        (
            ["assert kinds() == {'a': {1, 2}, (1, 2): b'x', None: 2j, 1.5: frozenset([3])}"],
            "def kinds(): return {'a': {1, 2}, (1, 2): b'x', None: 2j, 1.5: frozenset([3])}",
        ),
        (["assert count('aab') == {'a': 2, 'b': 1}"], "from collections import Counter as count"),
        (["assert LIMIT == 10 ** 5000"], "LIMIT = 10 ** 5000"),
        (
            ["assert apply(double, 4) == 8"],
            "def double(x): return 2 * x\ndef apply(f, x): return f(x)",
        ),
        (
            ["assert str(P(1)) == 'P1'"],
            "class P:\n    def __init__(self, x): pass\n    def __str__(self): return 'P1'",
        ),
        (["assert isinstance(f(), float) and f() != f()"], "def f(): return float('nan')"),
        (["assert f('\\udc80\\0é') == 3"], "f = len"),
    ],
)
def test_tests_use_functions_classes_generators_and_errors(tests, program):
    found = verdict({"kind": "code", "tests": tests}, answer(program))
    assert found.score == RIGHT, found


@pytest.mark.parametrize("raised", ["StopIteration", "GeneratorExit", "StopAsyncIteration"])
def test_no_error_of_the_program_ends_a_loop_of_the_tests(raised):
    """Whether it comes of a call, of an attribute or of an item."""
    program = f"""
        class Thing:
            def __getattr__(self, name):
                raise {raised}
            def __getitem__(self, key):
                raise {raised}
            def __len__(self):
                raise {raised}
        def thing(): return Thing()
        def fail(x): raise {raised}
    """
    for test in (
        "assert all(map(lambda x: fail(x) == 1, [1]))",
        "t = thing()\nassert all(map(lambda x: t.value == 1, [1]))",
        "t = thing()\nassert all(map(lambda x: t[x] == 1, [1]))",
        "t = thing()\nassert all(map(lambda x: len(t) == 1, [1]))",
    ):
        found = verdict({"kind": "code", "tests": [test]}, answer(program))
        assert found.score == WRONG, (test, found)


def test_arguments_are_data_and_go_over_as_copies():
    spec = {"kind": "code", "tests": ["x = [3, 1]", "order(x)", "assert x == [1, 3]"]}
    assert verdict(spec, answer("def order(x): x.sort()")).score == WRONG
    spec = {"kind": "code", "tests": ["assert apply(lambda x: x, 4) == 4"]}
    found = verdict(spec, answer("def apply(f, x): return f(x)"))
    assert found.score == WRONG and "cannot be given to a program" in found.reason


def test_time_of_the_program_is_wrong_and_a_failure_of_the_sandbox_is_no_score(monkeypatch):
    for spec in (ADDS, ADD):
        short = spec | {"seconds": 0.3}
        for program in ("import time\ntime.sleep(60)", "while True: pass"):
            found = verdict(short, answer(program))
            assert found.score == WRONG and "it took over" in found.reason, found
    found = verdict(ADD, answer("def add(a, b):\n    return 'x' * 10**7"))
    assert found.score == WRONG and "too long" in found.reason
    found = verdict(ADD, answer("print('x' * 10**7)\ndef add(a, b): return a + b"))
    assert found.score == WRONG and "it wrote over" in found.reason
    from megatron_qwen3.posttrain.sandbox import launch

    fails = lambda *_: ["/bin/sh", "-c", "echo no room >&2; exit 1"]  # noqa: E731
    monkeypatch.setattr(launch.Launcher, "command", fails)
    for spec in (ADDS, ADD):
        found = verdict(spec | {"seconds": 0.4}, answer("while True: pass"))
        assert found.score is NOBODY_KNOWS and "no room" in found.reason, found


def test_a_program_that_was_ended_from_outside_is_no_verdict(monkeypatch):
    """As by the kernel of a machine that is out of memory: its verdict is not known."""
    run = process.run

    def ended(launcher, limits, job, is_stopped):
        outcome = run(launcher, limits, job, is_stopped)
        if job.arguments[:1] == ("ask",):
            return outcome
        return replace(outcome, status=None, failure="it was ended from outside, by signal 9")

    monkeypatch.setattr(process, "run", ended)
    found = verdict(ADD, answer("import os\ndef add(a, b): os._exit(0)"))
    assert found.score is NOBODY_KNOWS and "ended from outside" in found.reason
    found = verdict(ADD, answer("def add(a, b): return a + b"))
    assert found.score == RIGHT  # all tests were passed before


def test_a_sandbox_that_is_closed_meanwhile_is_no_verdict(monkeypatch):
    closed = ProgramOutcome(None, "", "", 0.1, killed_by="closed")
    monkeypatch.setattr(process, "run", lambda *_: closed)
    for spec in (ADDS, ADD):
        found = verdict(spec, answer("def add(a, b): return a + b  # and is never run"))
        assert found.score is NOBODY_KNOWS, (spec, found)


@pytest.mark.parametrize(
    "wrap", [lambda spec: spec, lambda spec: {"kind": "every", "specs": [spec]}]
)
def test_programs_and_their_tests_keep_each_character_as_it_is(wrap):
    """Of a letter and its accent, which are two characters or one."""
    two, one = "e\u0301", "\u00e9"
    counts = {"kind": "code", "tests": [{"input": f"{two}\n", "output": "2\n"}]}
    assert verdict(wrap(counts), answer("print(len(input()))")).score == RIGHT
    parts = {"kind": "code", "tests": [f"assert parted('{one}') == '{two}'"]}
    source = f"def parted(text): return text.replace('{one}', '{two}')"
    assert verdict(wrap(parts), answer(source)).score == RIGHT
    assert verdict(wrap(parts), answer("def parted(text): return text")).score == WRONG


def test_tests_that_end_themselves_are_no_verdict():
    spec = {"kind": "code", "tests": ["assert add(1, 2) == 3", "import sys; sys.exit(0)"]}
    found = verdict(spec, answer("def add(a, b): return a + b"))
    assert found.score is NOBODY_KNOWS and "ended early" in found.reason


def test_numbers_may_differ_by_a_tolerance_and_words_may_not():
    spec = {"kind": "code", "tests": [{"input": "", "output": "x 0.333333\n7"}], "tolerance": 1e-4}
    assert verdict(spec, answer("print('x', 1 / 3); print(7.0)")).score == RIGHT
    for program in (
        "print('y', 1 / 3); print(7)",
        "print('x', 0.34); print(7)",
        "print('x'); print(7)",
    ):
        assert verdict(spec, answer(program)).score == WRONG
    exact = spec | {"tolerance": 0.0}
    assert verdict(exact, answer("print('x', 1 / 3); print(7)")).score == WRONG


@pytest.mark.parametrize(
    ("text", "program", "reason"),
    [
        ("```python\na\n```\n```python\nb\n```\nso `c`", "b\n", ""),
        ("```\na\n```", "a\n", ""),
        ("```py\na\n```\nIt prints\n```\n3\n```\n```bash\nls\n```", "a\n", ""),
        ("```Python3\na\n```", "a\n", ""),
        ("~~~python\na\n~~~", "a\n", ""),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n", ""),
        ("1. do\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y\n", ""),
        ('```python title="x"\na\n```', "a\n", ""),
        ("```python\na\n```\n```python\nb", "", "not closed"),
        ("```python\na\n```\n```text\nb", "a\n", ""),
        ("```java\na\n```", "", "no block"),
        ("print(1)", "", "no block"),
        ("", "", "no block"),
    ],
)
def test_the_program_is_the_last_block_of_code(text, program, reason):
    found, why = code.block(text)
    assert found == program and reason in why and bool(why) == (not program)


def test_a_program_in_the_thinking_is_none():
    text = "<think>\n```python\ndef add(a, b): return a + b\n```\n</think>\n\nIt is above."
    assert verdict(ADD, text).score == WRONG


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tests": []}, "empty list"),
        ({"tests": [{"input": "1"}]}, "is none; valid"),
        ({"tests": [{"input": 1, "output": "1"}]}, "is none; valid"),
        ({"tests": ["assert add(1"]}, "no Python"),
        ({"tests": ["assert 1 == 1"]}, "uses nothing of the program"),
        ({"tests": ["import math", "assert math.pi > 3"]}, "uses nothing of the program"),
        ({"tests": [3]}, "valid: a list"),
        ({"tests": ["assert f()"], "language": "java"}, 'valid: "python"'),
        ({"tests": ["assert f()"], "seconds": 0}, "seconds = 0"),
        ({}, "needs tests"),
    ],
)
def test_a_spec_of_no_use_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        check_spec({"kind": "code"} | fields)
    assert "\n" not in str(error.value)


def test_where_there_is_no_sandbox_the_spec_is_refused_and_no_program_runs(monkeypatch):
    monkeypatch.setattr(
        code, "_sandbox", lambda: ConfigError("the sandbox needs bwrap: install it")
    )
    with pytest.raises(ConfigError, match="needs bwrap"):
        check_spec(ADD)
    found = verdict(ADD, answer("def add(a, b): return a + b"))
    assert found.score is NOBODY_KNOWS and "needs bwrap" in found.reason


def test_workers_judge_programs_and_give_them_their_own_time():
    every = {"kind": "every", "specs": [ADD, {"kind": "length", "least": 1}]}
    assert kinds.own_seconds(ADDS) == 2 * 18 and kinds.own_seconds(every) == 18
    assert kinds.own_seconds({"kind": "math", "gold": "1"}) == kinds.own_seconds({}) == 0
    good, bad = answer("def add(a, b): return a + b"), answer("import time; time.sleep(99)")
    with Verifiers(workers=1, seconds=0.001) as verifiers:  # all others need longer than that
        found = verifiers.judge([(ADD, good), (every, good)])
    assert [one.score for one in found] == [RIGHT, RIGHT], found
    with Verifiers(workers=1, seconds=60) as verifiers:
        (found,) = verifiers.judge([(ADD | {"seconds": 0.3}, bad)])
    assert found.score == WRONG, found
