"""The command line: dialogs from an endpoint that answers, dies, is killed and goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from endpoint import completion, serving
from scripted import thought

from megatron_qwen3.chat import thinks
from megatron_qwen3.cli.build_dialogs import main
from megatron_qwen3.pages import dialogs as pages
from megatron_qwen3.posttrain.dialogs.samples import Choices, decoder, samples_of

ROOT = Path(__file__).parents[2]
WRITE_PAGE = pages.write
NAMES = ["dialogs.jsonl", "report.json", "dropped.jsonl", "problems.jsonl"]
QUICK = ["--tries", "2", "--first-wait", "0.01", "--seconds", "20", "--verify-workers", "1"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setattr(pages, "write", lambda content, out: None)  # a second of drawing each


def steps(a, b, result):
    return (
        f"We have to add {a} and {b}. First take the larger number, then count up by the smaller "
        f"one, digit by digit, with the carry in mind. That makes {a} + {b} = {result}. Checking "
        f"it the other way round: {result} - {b} = {result - b}, as it should be."
    )


def numbers_of(text):
    return [int(n) for n in re.findall(r"\d+", text)][:2]


def model(body, number):
    """Adds: easy sums at once; others only with thinking, now and then wrong or in a loop."""
    if body is None:
        return {"data": [{"id": "adder"}]}
    text = body["messages"][-1]["content"]
    if "checklist" in text or "verdicts" in text:
        return judge(body)
    found = numbers_of(text)
    if len(found) < 2:
        return completion("Roses are red and violets are blue, and this poem is for you.")
    a, b = found
    is_plain = "chat_template_kwargs" in body
    texts = []
    for k in range(body.get("n", 1)):
        right = a + b
        lot = (a * 7 + b * 3 + k) % 8
        if is_plain:
            shown = right if a < 20 else right + 1
            texts.append(f"The sum of these two numbers is \\boxed{{{shown}}}.")
        elif lot == 0:
            texts.append(thought(steps(a, b, right + 2), f"It is \\boxed{{{right + 2}}}."))
        elif lot == 1:
            texts.append(thought(steps(a, b, right) * 40, f"It is \\boxed{{{right}}}."))
        elif lot == 2:
            texts.append(thought(steps(a, b, right + 1), f"It is \\boxed{{{right}}}."))
        else:
            texts.append(thought(steps(a, b, right), f"The sum, number {k}: \\boxed{{{right}}}."))
    return completion(*texts)


def judge(body):
    text = body["messages"][-1]["content"]
    word = re.search(r'"word": "(\w+)"', text.rsplit("END", 1)[1])[1]
    if '"checklist": [' in text:
        return completion(json.dumps({"word": word, "checklist": ["It rhymes.", "It is short."]}))
    count = int(re.search(r"(\d+) verdicts\.", text)[1])
    if "bad poem" in text:
        return completion("Score: 10")
    return completion(json.dumps({"word": word, "verdicts": ["yes"] * count}))


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def task(text, gold, **more):
    verifier = {"kind": "numeric", "gold": str(gold)}
    row = {"messages": [{"role": "user", "content": text}], "verifier": verifier, "source": "sums"}
    return row | {"domain": "math"} | more


def sums(count):
    return [
        task(f"What is {a} plus {100 + 2 * a}?", 100 + 3 * a, id=f"sum{a}")
        for a in range(20, 20 + count)
    ]


BAD = [
    "{not json",
    task("What is 5 plus 6?", 11, id="easy"),
    task("What is 31 plus 32? What is 1 plus 1?", 63, id="several"),
    task("What is 33 plus 34?", "", id="nothing"),
    task("What is 20 plus  140?", 160, id="again"),
    task("What is 35 plus 36? /no_think", 71, id="flagged"),
    task("What is 37 plus 38?", 75, id="\x1b[31mred\u202e", domain="<script>alert(1)</script>"),
]


def run(out, *arguments):
    return main([*arguments, "--out", str(out), *QUICK])


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(out):
    return {name: (out / name).read_bytes() for name in NAMES}


def reasons(out, level):
    found = {}
    for of, reason, _, count in json.loads((out / "report.json").read_bytes())["counts"]:
        if of == level:
            found[reason] = found.get(reason, 0) + count
    return found


def check_dialogs(rows):
    """The samples of tokenize_dialogs: one for each answer, in its mode."""
    decode = decoder("dialogs").decode
    for row in rows:
        samples = samples_of(decode(json.dumps(row).encode()), Choices())
        answers = [k for k, m in enumerate(row["messages"]) if m["role"] == "assistant"]
        assert len(samples) == len(answers)
        for sample, place in zip(samples, answers, strict=True):
            asked = thinks(row["messages"][:place])
            assert sample.mode == ("thinking" if asked else "non-thinking") and not sample.remark


def cold_start(out, queries, address, *more):
    asked = ["--queries", queries, "--generator", address, "--samples", "4", "--direct-tries", "2"]
    return run(out, "cold-start", *asked, *more)


def test_a_cold_start_keeps_what_is_worth_it_and_says_why_not_the_rest(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(pages, "write", WRITE_PAGE)
    queries = write(tmp_path / "q.jsonl", [*sums(16), *BAD])
    out = tmp_path / "out"
    with serving(model) as (address, asked):
        assert cold_start(out, queries, address, "--judge", f"{address}#adder") == 0
    shown = capsys.readouterr()
    assert reasons(out, "query") == {
        "kept": 17,
        "solved without thinking": 1,
        "several questions": 1,
        "not verifiable": 1,
        "same as another query": 1,
        "has a flag of its own": 1,
    }
    answers = reasons(out, "answer")
    assert sum(answers.values()) == 4 * 17
    assert {"kept", "wrong answer", "repetition", "thinking and answer disagree"} == set(answers)
    rows = read(out / "dialogs.jsonl")
    check_dialogs(rows)
    assert all(row["mode"] == "thinking" and row["source"] == "sums" for row in rows)
    assert 0 < len(rows) <= 17 and len({row["id"].rsplit("/")[0] for row in rows}) == len(rows)
    (problem,) = read(out / "problems.jsonl")
    assert (problem["file"], problem["line"]) == (queries, 17)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page and "\x1b" not in page and "wrong answer" in page
    assert "\x1b[31m" not in shown.out + shown.err and "\u202e" not in shown.out + shown.err
    assert (out / "report" / "lengths.png").stat().st_size > 1000
    assert all("sk-secret" not in path.read_text("utf-8") for path in out.glob("*.json*"))
    dropped = read(out / "dropped.jsonl")
    solved = next(row for row in dropped if row["reason"] == "solved without thinking")
    assert solved["numbers"] == {"solved": 2, "tries": 2} and solved["id"] == "easy"


def test_the_result_is_a_function_of_the_answers_and_other_filters_ask_nothing_again(tmp_path):
    queries = write(tmp_path / "q.jsonl", sums(8))
    out = tmp_path / "out"
    with serving(model) as (address, asked):
        assert cold_start(out, queries, address) == 0
        first = contents(out)
    with serving(lambda body, n: model(body, n) if body is None else 500) as (moved, asked):
        assert cold_start(out, queries, moved, "--everything", "--fewest-steps", "1") == 0
        assert len(asked) == 1 and contents(out) != first
        assert cold_start(out, queries, moved) == 0
        assert contents(out) == first


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Queries, the files that come of them where nothing goes wrong, and how many requests."""
    folder = tmp_path_factory.mktemp("whole")
    queries = write(folder / "q.jsonl", sums(40))
    with pytest.MonkeyPatch.context() as patch, serving(model) as (address, asked):
        patch.setenv("no_proxy", "127.0.0.1")
        patch.setattr(pages, "write", lambda content, out: None)
        assert cold_start(folder / "out", queries, f"{address}#adder") == 0
    return queries, contents(folder / "out"), len(asked)


def test_a_dead_endpoint_loses_nothing_and_the_same_command_goes_on(whole, tmp_path, capsys):
    queries, expected, requests = whole
    out = tmp_path / "out"
    dies = lambda body, number: model(body, number) if number < 45 else 503  # noqa: E731
    with serving(dies) as (address, asked):
        assert cold_start(out, queries, f"{address}#adder") == 2
    error = capsys.readouterr().err
    assert "status 503" in error and "the same command goes on" in error
    assert not (out / "dialogs.jsonl").exists()
    assert len(read(out / "answers.jsonl")) == 45
    with serving(model) as (address, asked):
        assert cold_start(out, queries, f"{address}#adder") == 0
    assert len(asked) == requests - 45
    assert contents(out) == expected


def test_a_query_that_alone_fails_is_told_and_asked_again(tmp_path, capsys):
    queries = write(tmp_path / "q.jsonl", sums(6))
    out = tmp_path / "out"

    def refuses(body, number):
        text = "" if body is None else body["messages"][-1]["content"]
        return 400 if "What is 22 " in text else model(body, number)

    with serving(refuses) as (address, _):
        assert cold_start(out, queries, address) == 0
    assert "1 queries lack answers; the same command asks them again" in capsys.readouterr().err
    assert reasons(out, "query") == {"kept": 5, "not answered": 1}
    with serving(model) as (address, _):
        assert cold_start(out, queries, address) == 0
    assert reasons(out, "query") == {"kept": 6}


def test_killed_at_any_moment_the_same_command_ends_with_the_same_files(whole, tmp_path):
    queries, expected, requests = whole

    def slow(body, number):
        time.sleep(0.01)
        return model(body, number)

    with serving(slow) as (address, asked):
        out = tmp_path / "out"
        command = [sys.executable, "tools/build_dialogs.py", "cold-start", "--queries", queries]
        command += ["--generator", f"{address}#adder", "--samples", "4", "--direct-tries", "2"]
        command += ["--out", str(out), "--concurrency", "2", *QUICK]
        for moment in (9, 50):
            killed = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while len(asked) < moment and killed.poll() is None:
                time.sleep(0.005)
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        assert not (out / "dialogs.jsonl").exists()
        assert cold_start(out, queries, f"{address}#adder") == 0
        assert len(asked) <= requests + 2 * 3  # what was under way
    assert contents(out) == expected


def test_fusion_has_both_modes_with_flags_and_is_graded(tmp_path):
    queries = write(tmp_path / "q.jsonl", sums(24))
    poems = [
        {"messages": [{"role": "user", "content": f"Write a poem, please: {word}."}],
         "domain": "writing", "id": word}
        for word in ["one", "two", "three", "four", "five", "bad poem"]
    ]  # fmt: skip
    poems.append(task("What is 7 plus 8?", 15, id="sum"))
    plain = write(tmp_path / "p.jsonl", poems)
    arguments = ["fusion", "--queries", queries, "--plain-queries", plain, "--samples", "4"]
    arguments += ["--plain-samples", "1", "--thinking-share", "0.75", "--joined", "0.5"]
    outs = [tmp_path / name for name in ("judged", "again", "alone")]
    with serving(model) as (address, _):
        arguments += ["--generator", address]
        for out in outs[:2]:
            assert run(out, *arguments, "--judge", f"{address}#adder") == 0
        assert run(outs[2], *arguments) == 0
    assert contents(outs[0]) == contents(outs[1])
    rows = read(outs[0] / "dialogs.jsonl")
    check_dialogs(rows)
    report = json.loads((outs[0] / "report.json").read_bytes())
    assert report["taken"] == {"thinking": 18, "plain": 6}
    assert report["judge"] == {"the reply is no JSON object": 1}  # of the bad poem
    assert reasons(outs[0], "answer")["judge failed"] == 1
    assert reasons(outs[2], "query")["nothing grades it"] == 6
    assert any("mode" not in row for row in rows)
    texts = "\n".join(
        m["content"] for row in rows for m in row["messages"] if m["role"] != "assistant"
    )
    assert "/no_think" in texts and "/think" in texts


def test_a_teacher_answers_in_both_modes(tmp_path):
    queries = write(tmp_path / "q.jsonl", [*sums(6), task("What is 5 plus 6?", 11, id="easy")])
    out = tmp_path / "out"
    arguments = ["distill", "--queries", queries, "--samples", "4"]
    with serving(model) as (address, _):
        assert run(out, *arguments, "--generator", address, "--joined", "0") == 0
        report = json.loads((out / "report.json").read_bytes())
        assert report["taken"] == {"thinking": 7, "non-thinking": 1}  # the others are wrong
        check_dialogs(read(out / "dialogs.jsonl"))
        assert run(tmp_path / "u", *arguments, "--generator", address, "--unverified") == 0
        assert run(tmp_path / "t", *arguments, "--generator", address, "--modes", "thinking") == 0
    report = json.loads((tmp_path / "u" / "report.json").read_bytes())
    assert report["taken"] == {"thinking": 7, "non-thinking": 7}
    assert {row["mode"] for row in read(tmp_path / "t" / "dialogs.jsonl")} == {"thinking"}


def test_a_stop_is_told_and_goes_on(tmp_path, capsys):
    queries = write(tmp_path / "q.jsonl", sums(4))

    def interrupts(body, number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return model(body, number)

    with serving(interrupts) as (address, _):
        status = cold_start(tmp_path / "out", queries, f"{address}#adder", "--concurrency", "1")
        assert status == 143 and "the same command goes on" in capsys.readouterr().err
        assert cold_start(tmp_path / "out", queries, f"{address}#adder") == 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--generator", "nowhere"], "neither a folder with a model nor an address"),
        (["--samples", "0"], "samples = 0; valid: at least 1"),
        (["--validation", "gone.jsonl"], "--validation needs --tokenizer"),
        (["--on-error", "stop"], "q.jsonl:2: not JSON"),
        (["--queries", "gone.jsonl"], "--queries gone.jsonl: cannot be read"),
        (["--direct", "tests", "--generator", "tools"], "are models of ours"),
        (["--most-foreign", "2"], "most_foreign = 2.0; valid: at most 1"),
    ],
)
def test_what_is_wrong_is_told_in_a_line_before_anything_is_asked(tmp_path, capsys, more, told):
    queries = write(tmp_path / "q.jsonl", [*sums(1), "{"])
    with serving(model) as (address, asked):
        assert cold_start(tmp_path / "out", queries, f"{address}#m", *more) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1
    assert not asked and not (tmp_path / "out").exists()


def test_nothing_kept_is_an_error(tmp_path, capsys):
    queries = write(tmp_path / "q.jsonl", [task("What is 5 plus 6?", 11)])
    with serving(model) as (address, _):
        assert cold_start(tmp_path / "out", queries, address) == 2
    told = "not one dialog was made; most queries: solved without thinking"
    assert told in capsys.readouterr().err
    assert reasons(tmp_path / "out", "query") == {"solved without thinking": 1}
