"""A model of ours is evaluated, on two ranks, and what was answered is not asked again."""

import json

import pytest
from ranks import run_ranks
from test_own_generator import folder  # noqa: F401

from megatron_qwen3.cli.evaluate_model import main


@pytest.mark.slow
def test_two_ranks_evaluate_a_model_and_the_same_command_asks_nothing_twice(
    folder,  # noqa: F811
    tmp_path,
):
    rows = [
        {
            "messages": [{"role": "user", "content": f"a b {n}"}],
            "verifier": {"kind": "length", "unit": "characters", "least": 1},
        }
        for n in range(3)
    ]
    tasks, out = tmp_path / "tasks.jsonl", tmp_path / "out"
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [folder, "--tasks", tasks, "--out", out, "--samples", 2, "--budgets", 4]
    words += ["--max-tokens", 12, "--obedience", 4, "--verify-workers", 1]
    words = [str(word) for word in [*words, "--local", "parallel.tensor=2"]]
    assert run_ranks(main, 2, words) == [0, 0]
    content = json.loads((out / "results.json").read_text())
    answers = (out / "answers.jsonl").read_bytes()
    assert content["unit"] == "tokens" and content["obedience"]["answered"] == 4
    assert [row["samples"] for row in content["conditions"]] == [6, 6, 6]
    assert all(row["answer"]["median"] > 0 for row in content["conditions"])
    assert run_ranks(main, 2, words) == [0, 0]
    assert (out / "answers.jsonl").read_bytes() == answers
    assert json.loads((out / "results.json").read_text()) == content
