"""Kinds of tasks that come with the project: endless, the same each time, and rightly judged."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_qwen3.cli import tasks as tasks_command
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.building.queries import Query
from megatron_qwen3.posttrain.evaluation.tasks import open_source, read
from megatron_qwen3.posttrain.rewards.tasks import kinds
from megatron_qwen3.posttrain.verifiers import KINDS, check_spec, verdict

JUDGED = ("writing",)  # by a judge alone
SCORED = [kind for kind in kinds.KINDS if kind not in JUDGED]
COUNT = 12
COUNTS = {"code": 3}  # of a kind whose answers take a sandbox each
# Answers of a model that knows how to please, and nothing else.
EMPTY_TALK = ("", "Yes.", "I do not know.", "The answer is correct. Score: 10", "<answer></answer>")


def judged(task, text):
    if task.verifier["kind"] not in KINDS:
        pytest.skip(f"no verifier of kind {task.verifier['kind']} here")
    made = verdict(task.verifier, text)
    if made.score is None and "sandbox" in made.reason:
        pytest.skip(made.reason)
    return made.score


@pytest.mark.parametrize("kind", SCORED)
def test_a_right_answer_passes_its_verifier_and_empty_talk_does_not(kind):
    for number in range(COUNTS.get(kind, COUNT)):
        task = kinds.task(kind, 5, number)
        if task.gold:
            assert judged(task, task.gold) == 1.0, task
            check_spec(task.verifier)
        for text in EMPTY_TALK:
            follows = task.domain in ("functions", "logic")
            assert judged(task, text) == 0.0 or (text and follows), (task, text)


@pytest.mark.parametrize("kind", SCORED)
def test_the_answer_of_another_task_is_wrong(kind):
    """Nearly always: two tasks may have one answer, as yes or no."""
    wrong = total = 0
    tasks = [kinds.task(kind, 6, number) for number in range(COUNTS.get(kind, COUNT))]
    for one in tasks:
        for other in tasks:
            if one.gold and one.gold != other.gold:
                total, wrong = total + 1, wrong + (judged(one, other.gold) == 0.0)
    least = 0.2 if kind in ("instructions", "roles") else 0.95
    assert total >= len(tasks) and wrong >= least * total


def test_no_constant_and_no_look_at_the_length_passes_the_tests_of_a_function():
    """Or a policy is rewarded for it: of a yes or no there are few other results."""
    by_length = []
    for number in range(300):
        task = kinds.task("code", 9, number)
        tests = task.verifier["tests"]
        results = {test.rpartition(" == ")[2] for test in tests}
        assert len(results) > 1, task
        if "is_mirrored" in tests[0]:
            inputs = [test.partition("(")[2].rpartition(") == ")[0] for test in tests]
            mirrored = [test.endswith("True") for test in tests]
            by_length.append([len(text) < 4 for text in inputs] == mirrored)
    assert len(by_length) > 10 and sum(by_length) < 0.2 * len(by_length)


def test_functions_that_come_with_tests_pass_them():
    """Those of the project, in this process: a sandbox is for models' programs."""
    names = set()
    for number in range(60):
        task, scope = kinds.task("code", 3, number), {}
        exec(task.gold.removeprefix("```python\n").removesuffix("```"), scope)
        names |= scope.keys()
        for test in task.verifier["tests"]:
            exec(test, scope)
    assert len(names) > 8


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_task_is_a_function_of_kind_seed_and_number_and_there_is_no_last_one(kind):
    once = [kinds.task(kind, 1, number) for number in (0, 3, 1_000_000)]
    assert once == [kinds.task(kind, 1, number) for number in (0, 3, 1_000_000)]
    assert len({task.id for task in once}) == 3
    texts = {kinds.task(kind, seed, n).question for seed in (1, 2) for n in range(COUNT)}
    assert len(texts) > COUNT  # seeds and numbers make others
    for task in once:
        json.dumps([task.messages, task.verifier, task.tools])
        assert task.set == f"own:{kind}" and task.language.startswith(
            ("eng", "deu", "fra", "spa", "zho")
        )


def test_there_are_over_20_kinds_and_those_of_the_project_speak_several_languages():
    assert len(kinds.KINDS) > 20
    languages = Counter(
        kinds.task(kind, 0, n).language
        for kind in ("countdown", "multiple_choice", "word_problems", "functions", "json", "code")
        for n in range(1, 40, 2)
    )
    assert len(languages) == 5 and languages["eng_Latn"] > max(
        count for name, count in languages.items() if name != "eng_Latn"
    )


@pytest.mark.parametrize("kind", JUDGED + ("roles",))
def test_what_no_verifier_can_tell_has_a_checklist(kind):
    assert all(len(kinds.task(kind, 0, n).checklist) >= 4 for n in range(COUNT))


def test_neighbouring_seeds_of_reasoning_gym_share_no_tasks():
    """Its task k of seed s is task 0 of seed s + k: held-out tasks would be trained."""
    one, other = (
        {kinds.gym_task("products", {"min_digits": 4}, seed, n).question for n in range(300)}
        for seed in (0, 1)
    )
    assert len(one) > 295 and len(one & other) < 3


def test_what_a_generator_cannot_make_is_drawn_again_the_same_way_each_time(monkeypatch):
    """Its mazes fail now and then, and some of its golds are empty texts."""
    real, tried = kinds.gym.task, []

    def sometimes(dataset, seed, *more):
        tried.append(seed)
        made, entry = real(dataset, seed, *more)
        if len(set(tried)) == 1:
            raise RuntimeError("no path")
        return made, entry | ({"answer": ""} if len(set(tried)) == 2 else {})

    monkeypatch.setattr(kinds.gym, "task", sometimes)
    assert kinds.gym_task("products", {}, 0, 5).verifier["seed"] == tried[2] != tried[0]
    monkeypatch.setattr(kinds.gym, "task", lambda *_: (None, {"question": "?", "answer": ""}))
    with pytest.raises(kinds.CannotJudge, match="in 20 attempts"):
        kinds.gym_task("products", {}, 0, 5)


# -- sources --------------------------------------------------------------------------------------


def test_generators_have_no_end_unless_a_size_is_given():
    endless = open_source("own:countdown,seed=4", "hard")
    assert endless.size is None and endless.name == "hard"
    task = endless.task(123_456)
    assert task == open_source("own:countdown,seed=4", "hard").task(123_456) and task.set == "hard"
    short = open_source("own:countdown,size=3")
    assert short.size == 3 and short.task(2).id == "countdown-0-2"
    with pytest.raises(IndexError):
        short.task(3)
    gym = open_source("gym:chain_sum,max_terms=2")
    assert gym.size is None and judged(gym.task(9_999_999), gym.task(9_999_999).gold) == 1.0
    listed = open_source("gym:chain_sum,size=4,seed=2")
    assert listed.size == 4
    assert [listed.task(n) for n in range(4)] == read(["gym:chain_sum,size=4,seed=2"])[0]


@pytest.mark.parametrize(
    "path, message",
    [
        ("own:countdwn", "did you mean countdown"),
        ("own:countdown,hard=1", "valid: size, seed"),
        ("own:countdown,size=0", "size at least 1"),
        ("gym:chain_summ", "chain_sum"),
        ("gym:chain_sum,terms=3", "min_terms"),
        ("nowhere.jsonl", "no such file"),
    ],
)
def test_a_source_that_is_none_is_refused_in_one_line(path, message):
    with pytest.raises(ConfigError, match=message) as error:
        open_source(path)
    assert "\n" not in str(error.value)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


USER = [{"role": "user", "content": "Say hi."}]


def test_lines_say_what_a_judge_and_the_rewards_need(tmp_path):
    path = write(
        tmp_path / "t.jsonl",
        {"id": "a", "messages": USER, "gold": 42, "language": "de", "rewards": {"judge": 1}},
        {"id": "b", "messages": USER, "checklist": ["It greets."], "domain": "small talk"},
        {"id": "c", "messages": USER, "verifier": {"kind": "exact", "gold": "hi"}},
    )
    source = open_source(path)
    a, b, c = (source.task(n) for n in range(source.size))
    assert (a.gold, a.language, a.rewards) == ("42", "de", {"judge": 1}) and not a.verifier
    assert b.checklist == ("It greets.",) and b.domain == "small talk" and c.verifier
    assert read([path])[0] == [c]  # evaluations verify; what only a judge can score is a problem
    assert [problem.line for problem in read([path])[1]] == [1, 2]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"messages": USER}, "no verifier, no tests, and neither gold nor checklist"),
        ({"messages": USER, "gold": "x", "rewards": {"juge": 1}}, "did you mean judge"),
        ({"messages": USER, "gold": "x", "rewards": {"judge": True}}, "valid: a number"),
        ({"messages": USER, "verifier": {"kind": "exac", "gold": "x"}}, "exact"),
    ],
)
def test_a_line_that_is_no_task_is_refused_by_file_and_line(tmp_path, row, message):
    with pytest.raises(ConfigError, match=message) as error:
        open_source(write(tmp_path / "t.jsonl", row))
    assert "t.jsonl:1" in str(error.value) and "\n" not in str(error.value)


def test_tests_of_a_line_are_a_verifier_of_code():
    from megatron_qwen3.posttrain.building.queries import _of_line

    made = _of_line(
        Path("f"), 1, json.dumps({"messages": USER, "tests": ["assert f(1) == 2"]}).encode()
    )
    assert isinstance(made, Query)
    assert made.verifier == {"kind": "code", "tests": ["assert f(1) == 2"]}


# -- the verifiers that came with them ------------------------------------------------------------

CALL = {"name": "f", "arguments": {"a": 1, "b": [True, "x"]}}


def called(*calls):
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


@pytest.mark.parametrize(
    "answer, gold, right",
    [
        (called(CALL), [CALL], True),
        ("I look it up.\n" + called(CALL), [CALL], True),
        (
            called(CALL, {"name": "g", "arguments": {}}),
            [{"name": "g", "arguments": {}}, CALL],
            True,
        ),
        (called({"name": "f", "arguments": {"a": 1.0, "b": [True, "x"]}}), [CALL], True),
        (called({"name": "f", "arguments": {"a": True, "b": [True, "x"]}}), [CALL], False),
        (called({"name": "f", "arguments": {"a": 1}}), [CALL], False),
        (called(CALL, CALL), [CALL], False),
        (called(CALL)[:-12], [CALL], False),
        (f"<tool_call>{called(CALL)}</tool_call>", [CALL], False),
        ("<tool_call>f(1)</tool_call>", [CALL], False),
        (json.dumps(CALL), [CALL], False),
        ("Good morning.", [], True),
        ("", [], False),
        (called(CALL), [], False),
    ],
)
def test_calls_are_those_asked_for_and_no_other(answer, gold, right):
    assert verdict({"kind": "calls", "gold": gold}, answer).score == float(right)


@pytest.mark.parametrize(
    "answer, right",
    [
        ("She was born in 1923 [3].", True),
        ("1923 [ 3 ]", True),
        ("1923", False),  # cites nothing
        ("1923 [1][2][3]", False),  # cites all
        ("1923 [1, 3]", False),
        ("1923 or 1950 [3]", False),  # names another value, too
        ("19231 [3]", False),
        ("1950 [3]", False),
        ("", False),
    ],
)
def test_who_cites_or_names_everything_has_answered_nothing(answer, right):
    spec = {"kind": "cited", "gold": "1923", "sources": [3], "others": ["1950", "1888"]}
    assert verdict(spec, answer).score == float(right)


# -- the command ----------------------------------------------------------------------------------


def test_the_command_lists_kinds_and_shows_tasks_that_read_back(tmp_path, capsys):
    assert tasks_command.main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"own:{kind}" in listed for kind in kinds.KINDS)
    assert tasks_command.main(["own:roles", "--count", "2"]) == 0
    assert "checklist: " in capsys.readouterr().out
    for kind in ("functions", "writing", "roles", "countdown"):
        name = f"own:{kind},seed=3"
        assert tasks_command.main([name, "--jsonl", "--first", "7", "--count", "3"]) == 0
        path = tmp_path / f"{kind}.jsonl"
        path.write_text(capsys.readouterr().out)
        source, again = open_source(name, "s"), open_source(str(path), "s")
        for n in range(3):
            task = again.task(n)
            assert replace(task, source="") == source.task(7 + n)
    assert tasks_command.main(["own:no"]) == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"verifier": {"kind": "exact", "gold": "42"}}, "gold: 42"),
        ({"verifier": {"kind": "exact", "gold": ["one", "två"]}}, 'gold: ["one", "två"]'),
        ({"verifier": {"kind": "math", "gold": "42"}, "gold": "6 * 7 = 42"}, "gold: 6 * 7 = 42"),
        (
            {"verifier": {"kind": "ifeval/keywords:existence", "keywords": ["a"]}},
            "gold: its verifier alone knows",
        ),
        ({"checklist": ["is short"]}, "gold: none"),
    ],
)
def test_the_command_shows_the_right_answer_wherever_a_task_has_it(tmp_path, capsys, line, told):
    path = tmp_path / "tasks.jsonl"
    messages = [{"role": "user", "content": "What?"}]
    path.write_text(json.dumps({"id": "a", "messages": messages, **line}) + "\n")
    assert tasks_command.main([str(path)]) == 0
    assert told in capsys.readouterr().out.splitlines()
