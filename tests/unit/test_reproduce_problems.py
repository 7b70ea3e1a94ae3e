"""The problems of the reproduction: each step follows, and answers are those of the steps."""

from random import Random
from statistics import mean

import pytest

from examples.reproduce import corpus, problems
from examples.reproduce.dialogs import VERSIONS, cold_start, flagged, fuse, task
from megatron_qwen3.chat import thinks
from megatron_qwen3.posttrain.verifiers import verdict


def by_hand(problem):
    """The results, worked out by Python from the question's own text."""
    start, *steps = problem.body.split()
    values = [start]
    for step in steps:
        turns = "abcdefgh".index(step[0]) + 1 if problem.kind == "loops" else 1
        operation = step[1:].strip("[]")
        for _ in range(turns):
            if problem.kind == "swaps":
                letters, at = list(values[-1]), int(operation) - 1
                letters[at], letters[at + 1] = letters[at + 1], letters[at]
                values.append("".join(letters))
            else:
                values.append(str(eval(f"{values[-1]}{operation}") % 10))
    return values


@pytest.mark.parametrize("kind", problems.KINDS)
def test_answers_are_those_of_the_question_worked_by_hand(kind):
    random = Random(3)
    for _ in range(200):
        problem = problems.draw(kind, random)
        values = by_hand(problem)
        between = " " if kind == "swaps" else ""
        assert list(problem.values) == values and 3 <= len(problem.steps) <= 8
        assert problem.answer == "=" + "".join(between + value for value in values[-3:])


@pytest.mark.parametrize("kind", problems.KINDS)
def test_a_wrong_digit_or_letter_stays_wrong_to_the_end(kind):
    """Every step is one to one, so no later step heals an error."""
    operations = ["1", "2", "3"] if kind == "swaps" else ["+3", "-9", "*3", "*7", "*9"]
    values = ["abcd", "bacd", "dcba"] if kind == "swaps" else [str(digit) for digit in range(10)]
    for operation in operations:
        results = {problems.applied(value, operation) for value in values}
        assert len(results) == len(values), operation


def test_a_merged_line_has_the_result_of_its_last_step():
    problem = problems.draw("chain", Random(1), fewest=6, most=6)
    lines = problem.lines(Random(2), (0.0, 1.0)).split(f" {problem.steps[0][0]}", 1)[1]
    assert lines.count("=") == 3
    assert [part[0] for part in lines.split("=")[1:]] == list(problem.values[2::2])


def test_tasks_are_verified_by_their_own_answers_alone():
    random = Random(5)
    for _ in range(50):
        row = task(random, 3)
        gold = row["gold"]
        assert verdict(row["verifier"], f"<think>\n a\n</think>\n\n{gold}").score == 1
        assert verdict(row["verifier"], f"<think>\n{gold}\n</think>\n\n=0").score == 0


def test_documents_have_no_form_of_a_chat_and_no_words_of_a_budget():
    texts = [line["text"] for _, line in corpus.documents(1, 0.01)]
    assert len(texts) > 900
    for text in texts:
        assert "<|im_" not in text and "<think>" not in text
        assert "Considering the limited time" not in text


def test_flags_are_words_among_others_that_no_document_obeys():
    rows = [line for _, line in corpus.documents(1, 0.02) if line["source"] != "facts"]
    flagged = [row["text"] for row in rows if "/no_think" in row["text"]]
    assert 0.03 < len(flagged) / len(rows) < 0.3
    assert all("=" in text.replace("\n", "") for text in flagged)
    # As long as those without: none is answered at once.
    assert mean(map(len, flagged)) > mean(len(row["text"]) for row in rows)


def test_fused_dialogs_think_where_the_last_flag_says_so(tmp_path):
    import json

    rows = []
    for _ in range(40):
        row = cold_start(Random(len(rows)), 3)
        rows.append({**row, "domain": "chain"})
    thought = tmp_path / "thought.jsonl"
    thought.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dialogs, bare = list(fuse(thought, 1)), []
    for dialog in dialogs:
        for place, message in enumerate(dialog["messages"]):
            if message["role"] == "assistant":
                mode = thinks(dialog["messages"][:place])
                assert mode == bool(message["reasoning_content"])
                if "think" not in dialog["messages"][place - 1]["content"]:
                    bare.append(mode)
    assert sum(len(dialog["messages"]) for dialog in dialogs) >= 2 * 80 * VERSIONS
    assert 0.2 < mean(bare) < 0.9  # a turn without a flag is in either mode


def test_a_guess_without_thinking_has_no_reward():
    random = Random(3)
    for row in (flagged(random, 3) for _ in range(100)):
        assert (row["rewards"] == {}) == thinks(row["messages"])
