"""Evaluations: requests, counts and messages, with models whose answers a function gives."""

import json
from contextlib import contextmanager

import pytest
from scripted import InProcess, Scripted, Silent, thought

from megatron_qwen3.chat import soft_switch, thinks
from megatron_qwen3.cli import evaluate_model
from megatron_qwen3.config import ConfigError
from megatron_qwen3.generate.thinking import CUT_TEXT
from megatron_qwen3.posttrain.building.answer_log import AnswerLog
from megatron_qwen3.posttrain.building.asking import Dead
from megatron_qwen3.posttrain.building.candidates import DrawSettings
from megatron_qwen3.posttrain.evaluation import conditions
from megatron_qwen3.posttrain.evaluation.estimates import wilson
from megatron_qwen3.posttrain.evaluation.evaluate import Evaluation, EvaluationSettings
from megatron_qwen3.posttrain.evaluation.tasks import read
from megatron_qwen3.posttrain.generators.answers import Answer, said
from megatron_qwen3.posttrain.verifiers import Verdict


class Verifying(InProcess):
    def alarm(self):
        return ""


def write_tasks(path, count=4, kind="numeric"):
    rows = [
        {
            "id": f"t{n}",
            "messages": [{"role": "user", "content": f"What is {n} + {n}?"}],
            "verifier": {"kind": kind, "gold": 2 * n},
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def number_of(request):
    return int(request.messages[-1]["content"].split()[2])


def solver(request, sample):
    """Thinking it is always right; without, the first of two samples is."""
    number = number_of(request)
    if request.enable_thinking:
        return thought("x" * 10 * (request.thinking_budget or 7), f"\\boxed{{{2 * number}}}")
    return str(2 * number + sample % 2)


def evaluate(tmp_path, model, tasks, verifiers=None, **settings):
    with AnswerLog(tmp_path / "answers.jsonl") as log:
        evaluation = Evaluation(model, log, verifiers or Verifying(), Silent())
        return evaluation.run(tasks, EvaluationSettings(**settings))


def by_condition(found):
    return {row["condition"]: row for row in found.content["conditions"] if row["set"] == "all"}


def test_rates_and_lengths_of_each_mode_and_budget(tmp_path):
    tasks, _ = read([write_tasks(tmp_path / "sums.jsonl")])
    found = evaluate(tmp_path, Scripted(solver), tasks, samples=2, budgets=(4, 2))
    rows = by_condition(found)
    assert list(rows) == ["thinking", "non-thinking", "thinking-2", "thinking-4"]
    thinking, plain = rows["thinking"], rows["non-thinking"]
    assert thinking["pass"]["1"]["value"] == thinking["pass"]["2"]["value"] == 1.0
    assert plain["pass"]["1"]["value"] == 0.5 and plain["pass"]["2"]["value"] == 1.0
    assert 0.15 < plain["pass"]["1"]["low"] < 0.3 and 0.7 < plain["pass"]["1"]["high"] < 0.85
    assert [rows[f"thinking-{b}"]["thinking"]["median"] for b in (2, 4)] == [20, 40]
    assert plain["thinking"]["median"] == 0 and plain["thinking"]["ranges"] == [(0, 8)]
    assert thinking["thinking"]["ranges"] == [(64, 8)]
    assert found.content["unit"] == "characters"
    assert len(found.samples) == 4 * 2 * 4 and found.content["tasks"] == {"sums.jsonl": 4}


def test_a_stopped_evaluation_asks_for_the_rest_only(tmp_path):
    tasks, _ = read([write_tasks(tmp_path / "sums.jsonl", 6)])

    def stops(request, sample):
        if number_of(request) == 3 and not request.enable_thinking:
            raise KeyboardInterrupt
        return solver(request, sample)

    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, Scripted(stops), tasks, samples=2)
    rest = Scripted(solver)
    found = evaluate(tmp_path, rest, tasks, samples=2)
    assert [number_of(request) for request in rest.asked] == [3, 4, 5]
    whole = evaluate(tmp_path / "..", Scripted(solver), tasks, samples=2)
    assert found.content == whole.content and found.samples == whole.samples
    again = Scripted(solver)
    assert evaluate(tmp_path, again, tasks, samples=2).content == whole.content
    assert not again.asked


def test_failed_requests_are_told_and_asked_again(tmp_path):
    tasks, _ = read([write_tasks(tmp_path / "sums.jsonl", 3)])

    def fails(request, sample):
        if number_of(request) == 1:
            raise ValueError("status 500")
        return solver(request, sample)

    found = evaluate(tmp_path, Scripted(fails), tasks, modes=("thinking",))
    (row,) = found.content["conditions"]
    assert row["unanswered"] == 1 and row["samples"] == 2
    assert found.content["failures"] == {"status 500": 1}
    assert row["pass"]["1"]["tasks"] == 2
    found = evaluate(tmp_path, Scripted(solver), tasks, modes=("thinking",))
    assert not found.content["failures"] and found.content["conditions"][0]["samples"] == 3


def test_many_requests_that_are_refused_do_not_keep_the_others_from_being_asked(tmp_path):
    tasks, _ = read([write_tasks(tmp_path / "sums.jsonl", 45)])

    def too_long(request, sample):
        if number_of(request) < 40:
            return Answer("", "error", None, "status 400: too long", is_refused=True)
        return solver(request, sample)

    found = evaluate(tmp_path, Scripted(too_long), tasks, modes=("thinking",))
    (row,) = found.content["conditions"]
    assert row["samples"] == 5 and row["unanswered"] == 40
    assert found.content["failures"] == {"status 400: too long": 40}
    gone = Scripted(lambda request, sample: Answer("", "error", None, "status 503"))
    with pytest.raises(Dead, match="32 requests in a row failed"):
        evaluate(tmp_path, gone, tasks, modes=("thinking",))


def test_what_a_model_does_not_obey_is_told(tmp_path):
    tasks, _ = read([write_tasks(tmp_path / "sums.jsonl", 4)])
    deaf = Scripted(lambda request, sample: thought("x" * 2000, "\\boxed{1}"))
    found = evaluate(tmp_path, deaf, tasks, budgets=(8, 900))
    assert found.content["notes"] == [
        "non-thinking: 4 of 4 answers have thinking",
        "thinking-8: 4 of 4 answers have more thinking than 8 tokens",
    ]
    found = evaluate(tmp_path, Scripted(solver, "obeys"), tasks, budgets=(8, 900))
    assert not found.content["notes"]


def test_notes_on_an_endpoint_stand_in_the_results_also_when_its_answers_were_there(tmp_path):
    tasks, _ = read([write_tasks(tmp_path / "sums.jsonl", 4)])

    class Noted(Scripted):
        def answers(self, requests):
            for found in super().answers(requests):
                self.notes[:] = ["no seed is taken"]
                yield found

    for model in (Noted(solver), Scripted(solver), Scripted(solver, "another")):
        found = evaluate(tmp_path, model, tasks, modes=("thinking",))
        told = [] if model.label == "another" else ["no seed is taken"]
        assert found.content["notes"] == told
    with AnswerLog(tmp_path / "answers.jsonl") as log:
        assert not log.damaged


def test_answers_that_nobody_can_judge_are_no_wrong_ones(tmp_path):
    tasks, _ = read([write_tasks(tmp_path / "sums.jsonl", 4)])

    class Failing(Verifying):
        def judge(self, pairs):
            verdicts = super().judge(pairs)
            return [Verdict(None, "time-out"), *verdicts[1:]]

        def alarm(self):
            return "1 of 4"

    found = evaluate(tmp_path, Scripted(solver), tasks, Failing(), modes=("thinking",))
    (row,) = found.content["conditions"]
    assert row["not_judged"] == 1 and row["pass"]["1"]["value"] == 1.0
    assert row["pass"]["1"]["tasks"] == 3 and found.content["alarm"] == "1 of 4"
    assert found.examples[None][0]["name"].endswith("t0: time-out")


def test_answers_that_were_cut_are_counted_and_told(tmp_path):
    tasks, _ = read([write_tasks(tmp_path / "sums.jsonl", 4)])
    cut = Scripted(lambda request, sample: Answer("<think>\nwell", "length"))
    found = evaluate(tmp_path, cut, tasks, modes=("thinking",))
    (row,) = found.content["conditions"]
    assert row["truncated"]["value"] == 1.0 and row["pass"]["1"]["value"] == 0.0
    assert found.content["notes"] == ["thinking: 100.0 % of the answers were cut by max_tokens"]
    assert found.samples[0].reason == "<think> without </think>"


def test_answers_that_were_cut_are_told_by_task(tmp_path):
    """Ten tasks, of which one has all its answers cut, are not as sure as 640 answers."""
    tasks, _ = read([write_tasks(tmp_path / "sums.jsonl", 10)])

    def cuts(request, sample):
        return Answer("1", "length" if number_of(request) == 3 else "stop")

    found = evaluate(tmp_path, Scripted(cuts), tasks, modes=("thinking",), samples=64)
    share = found.content["conditions"][0]["truncated"]
    assert share["tasks"] == 10 and share["value"] == 0.1
    assert (share["low"], share["high"]) == pytest.approx(wilson(1, 10))


def test_answers_that_were_there_are_told(tmp_path):
    tasks, _ = read([write_tasks(tmp_path / "sums.jsonl", 4)])
    with AnswerLog(tmp_path / "answers.jsonl") as log:
        for told in (0, 1):
            steps = Silent()
            evaluation = Evaluation(Scripted(solver), log, Verifying(), steps)
            evaluation.run(tasks, EvaluationSettings(modes=("thinking",), samples=2))
            said = [line for line in steps.said if "8 answers of scripted are in" in line]
            assert len(said) == told


def test_the_last_flag_of_a_dialog_decides(tmp_path):
    tasks, _ = read([write_tasks(tmp_path / "sums.jsonl", 4)])

    def obeys(request, sample):
        if thinks(request.messages):
            return thought("well", "it is")
        return "<think>\n\n</think>\n\nit is"

    def looks_at_the_first(request, sample):
        first = soft_switch(request.messages[:1])
        return thought("well", "it is") if first is not False else "it is"

    found = evaluate(tmp_path, Scripted(obeys, "a"), tasks, modes=(), obedience=200)
    everything = found.content["obedience"]["groups"]["all"]
    assert everything["obeys"]["value"] == everything["well_formed"]["value"] == 1.0
    groups = found.content["obedience"]["groups"]
    assert set(groups) >= {"thinking", "non-thinking", "1 query", "4 queries"}
    assert groups["thinking"]["obeys"]["tasks"] + groups["non-thinking"]["obeys"]["tasks"] == 200
    found = evaluate(tmp_path, Scripted(looks_at_the_first, "b"), tasks, modes=(), obedience=200)
    assert 0.4 < found.content["obedience"]["groups"]["all"]["obeys"]["value"] < 0.9
    always = Scripted(lambda request, sample: thought("well", "it is"), "c")
    groups = evaluate(tmp_path, always, tasks, modes=(), obedience=200).content["obedience"]
    assert groups["groups"]["thinking"]["obeys"]["value"] == 1.0
    assert groups["groups"]["non-thinking"]["obeys"]["value"] == 0.0


def test_dialogs_have_every_kind_of_flag_and_are_the_same_each_time(tmp_path):
    tasks, _ = read([write_tasks(tmp_path / "sums.jsonl", 4)])
    dialogs = conditions.dialogs(tasks, 300, seed=1)
    assert dialogs == conditions.dialogs(tasks, 300, seed=1) != conditions.dialogs(tasks, 300, 2)
    assert {dialog.turns for dialog in dialogs} == {1, 2, 3, 4}
    assert {dialog.thinks for dialog in dialogs} == {True, False}
    for dialog in dialogs:
        flag = soft_switch(dialog.messages)
        assert dialog.thinks == (flag is not False)
        roles = [message["role"] for message in dialog.messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (dialog.turns - 1) + ["user"]
    assert any(d.messages[0]["role"] == "system" and not d.thinks for d in dialogs)
    last = [d.messages[-1]["content"] for d in dialogs]
    assert any(text.endswith("/think /no_think") for text in last)


def test_lines_that_are_no_tasks_are_told_with_file_and_line(tmp_path):
    path = tmp_path / "sums.jsonl"
    write_tasks(path, 2)
    message = [{"role": "user", "content": "hi"}]
    bad = [
        {"messages": message},
        {"messages": message, "verifier": {"kind": "nummeric", "gold": 1}},
        {"messages": [], "verifier": {"kind": "numeric", "gold": 1}},
    ]
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in bad)
        file.write("{not json\n")
    tasks, problems = read([str(path)])
    assert len(tasks) == 2
    assert sorted(problem.line for problem in problems) == [3, 4, 5, 6]
    assert any("did you mean numeric" in problem.detail for problem in problems)
    with pytest.raises(ConfigError, match=r"sums.jsonl:\d: "):
        read([str(path)], stop_at_problem=True)


def test_no_set_has_the_name_of_all_together(tmp_path):
    with pytest.raises(ConfigError, match="is the name of results over all sets"):
        read([write_tasks(tmp_path / "all")])


def test_tasks_of_generators_are_asked_and_judged(tmp_path):
    pytest.importorskip("reasoning_gym")
    tasks, _ = read(["gym:chain_sum,size=3,seed=2,min_terms=2,max_terms=2", "gym:gcd"], most=3)
    assert len(tasks) == 6 and {task.set for task in tasks} == {"gym:chain_sum", "gym:gcd"}
    from megatron_qwen3.posttrain.verifiers import gym

    golds = {}
    for task in tasks:
        spec = dict(task.verifier)
        place = (spec["dataset"], spec["seed"], spec["size"], spec["index"])
        golds[task.messages[-1]["content"]] = gym.task(*place, spec.get("settings", {}))[1][
            "answer"
        ]

    def knows(request, sample):
        gold = golds[request.messages[-1]["content"]]
        return thought("hm", f"<answer>{gold if request.enable_thinking else 'x'}</answer>")

    found = evaluate(tmp_path, Scripted(knows), tasks)
    rates = {
        (r["condition"], r["set"]): r["pass"]["1"]["value"] for r in found.content["conditions"]
    }
    assert rates["thinking", "gym:gcd"] == rates["thinking", "all"] == 1.0
    assert rates["non-thinking", "gym:chain_sum"] == rates["non-thinking", "all"] == 0.0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nowhere.jsonl"], "no such file"),
        (["gym:chain_sums"], "did you mean chain_sum"),
        (["gym:nosuch"], r"no generator 'nosuch'; it has \d+, the nearest are \w+, \w+, \w+"),
        (["gym:chain_sum,min_term=2"], "no setting 'min_term'.*did you mean min_terms"),
        (["gym:chain_sum,zzz=2"], "no setting 'zzz'; valid: size, seed, min_terms, max_terms, "),
        (["gym:chain_sum,size=0"], "size at least 1"),
        (["gym:chain_sum,size"], "write NAME=VALUE"),
        (["gym:chain_sum,min_terms=x"], "chain_sum with"),
        (["gym:gcd,size=1", "gym:gcd,size=2"], "both called gym:gcd"),
    ],
)
def test_tasks_that_are_none_are_refused(names, message):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ConfigError, match=message):
        read(names)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run the command with a model whose answers a function gives; its exit status."""

    def run(say, *more, count=4):
        @contextmanager
        def opened(*_):
            yield Scripted(say, "http://model")

        monkeypatch.setattr(evaluate_model, "open_generator", opened)
        path = tmp_path / "sums.jsonl"
        if not path.exists():
            write_tasks(path, count)
        words = ["http://x/v1", "--tasks", path, "--out", tmp_path / "out", "--verify-workers", 1]
        return evaluate_model.main([str(word) for word in [*words, *more]])

    return run


def test_the_command_writes_page_numbers_and_samples(command, tmp_path, capsys):
    options = ["--samples", 2, "--budgets", 2, 4, "--obedience", 5]

    def answers(request, sample):
        first = next(m["content"] for m in request.messages if m["role"] == "user")
        return thought("<b>" * request.samples, first) if sample else solver(request, sample)

    assert command(answers, *options) == 0
    content = json.loads((tmp_path / "out/results.json").read_text())
    assert content["model"] == "http://model" and content["unit"] == "characters"
    assert len(content["conditions"]) == 4 and content["settings"]["samples"] == 2
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").open()]
    assert len(rows) == 4 * 2 * 4 and {row["score"] for row in rows} == {0.0, 1.0}
    assert rows[1]["thinking"].strip() == "<b><b>" and rows[1]["answer"] == "What is 0 + 0?"
    lines = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").open()]
    texts = {line["key"]: line["answers"] for line in lines}
    for row in rows:
        text, _ = texts[row["key"]][row["number"]]
        assert row["answer"] in text and row["thinking"] in text
    page = (tmp_path / "out/report.html").read_text()
    for text in (
        "Thinking budgets",
        "pass@k",
        "Length of thinking",
        "Flags in dialogs",
        "Right answers",
    ):
        assert text in page
    assert "&lt;b&gt;" in page and "<b><b>" not in page
    pictures = {path.name for path in (tmp_path / "out/report").iterdir()}
    assert pictures == {"pass_at_k.png", "budgets.png", "thinking_lengths.png", "obedience.png"}
    assert "pass@2 %" in " ".join(capsys.readouterr().out.split())


def test_a_budget_that_an_endpoint_refuses_has_no_rate_and_a_reason_on_the_page(command, tmp_path):
    def refuses(request, sample):
        if request.thinking_budget is not None:
            return Answer("", "error", None, "unknown field thinking_token_budget", is_refused=True)
        return solver(request, sample)

    assert command(refuses, "--samples", 2, "--budgets", 2, 4, "--modes", "thinking") == 0
    content = json.loads((tmp_path / "out/results.json").read_text())
    rows = {row["condition"]: row for row in content["conditions"]}
    assert rows["thinking"]["pass"] and not rows["thinking-2"]["pass"]
    assert rows["thinking-2"]["unanswered"] == 8
    assert content["failures"] == {"unknown field thinking_token_budget": 8}
    assert "thinking_token_budget" in (tmp_path / "out/report.html").read_text()


def test_answers_that_nobody_can_judge_are_an_alarm(command, tmp_path, capsys):
    """The reference is no formula: status 1, and no rate."""
    task = {
        "messages": [{"role": "user", "content": "What is 1 + 1?"}],
        "verifier": {"kind": "math", "gold": "\\frac{1}{"},
    }
    (tmp_path / "sums.jsonl").write_text(json.dumps(task) + "\n")
    assert command(solver, "--modes", "thinking") == 1
    assert "note: 1 of 1 answers could not be judged" in capsys.readouterr().err
    content = json.loads((tmp_path / "out/results.json").read_text())
    assert content["conditions"][0]["not_judged"] == 1 and not content["conditions"][0]["pass"]
    assert "no formula that can be read" in (tmp_path / "out/report.html").read_text()


def test_a_command_without_one_answer_fails(command, capsys):
    def fails(request, sample):
        raise ValueError("status 500")

    assert command(fails) == 2
    assert "not one answer" in capsys.readouterr().err


def test_obedience_alone_is_an_evaluation(command, tmp_path, capsys):
    says = lambda request, sample: thought("well", "it is")  # noqa: E731
    assert command(says, "--modes", "--obedience", 5) == 0
    assert "5 answers" in capsys.readouterr().out
    content = json.loads((tmp_path / "out/results.json").read_text())
    assert not content["conditions"] and content["obedience"]["answered"] == 5


@pytest.mark.parametrize("table", [EvaluationSettings, DrawSettings])
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"temperature": -0.5}, "temperature = -0.5"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_p": -0.3}, "top_p = -0.3"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_k": -2}, "top_k = -2"),
    ],
)
def test_only_minus_one_leaves_sampling_to_the_model(table, values, told):
    with pytest.raises(ConfigError, match=told):
        table(**values)
    assert said(table()) == said(table(temperature=-1.0, top_p=-1, top_k=-1)) == {}
    assert said(table(temperature=0.0, top_k=0)) == {"temperature": 0.0, "top_k": 0}


def test_sets_that_are_named_twice_and_numbers_that_are_none_are_refused(tmp_path):
    path = write_tasks(tmp_path / "sums.jsonl", 3)
    with pytest.raises(ConfigError, match="sums.jsonl is named twice"):
        read([path, path])
    for most in (0, -5):
        with pytest.raises(ConfigError, match=f"--most {most}; valid: at least 1"):
            read([path], most=most)


def test_wrong_settings_are_refused_before_anything_is_asked(command, capsys):
    for more, message in (
        (["--modes", "think"], "modes = think; valid: thinking, non-thinking"),
        (["--budgets", "-1"], "budgets = -1"),
        (["--samples", "0"], "samples = 0"),
        (["--tokenizer", "/nowhere"], "does not exist"),
    ):
        assert command(solver, *more) == 2
        assert message in capsys.readouterr().err


def test_what_a_budget_inserts_is_no_thinking(tmp_path):
    tasks, _ = read([write_tasks(tmp_path / "sums.jsonl", 3)])

    def cut(request, sample):
        """As our generator cuts, at its end or in the middle; the third stops by itself."""
        number = number_of(request)
        if number == 0:
            return f"<think>\nten chars!{CUT_TEXT}0"
        if number == 1:
            return Answer(f"<think>\nten chars!{CUT_TEXT[:60]}", "length")
        return thought("Considering the limits", "4")

    found = evaluate(tmp_path, Scripted(cut), tasks, modes=(), budgets=(4,))
    assert [sample.thinking_length for sample in found.samples] == [10, 10, 22]


def test_budgets_that_the_limit_of_tokens_makes_useless_are_refused_or_told(tmp_path):
    with pytest.raises(ConfigError, match=r"budgets = 64 is no less than max_tokens = 20, which"):
        EvaluationSettings(budgets=(4, 64), max_tokens=20)
    tasks, _ = read([write_tasks(tmp_path / "sums.jsonl", 1)])
    model = Scripted(solver)
    found = evaluate(tmp_path, model, tasks, budgets=(8, 16), max_tokens=70)
    assert [line.split(":")[0] for line in found.content["notes"]] == ["thinking-16"]
    assert "(25 tokens) leave 29 for an answer" in found.content["notes"][0]


def test_a_folder_of_another_command_is_refused(command, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report.json").write_text('{"command": "distill"}')
    assert command(solver) == 2
    assert "was begun by distill, whose files evaluate would overwrite" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert command(solver, "--out", tmp_path / "file") == 2
    assert "file is no folder; name another one" in capsys.readouterr().err
