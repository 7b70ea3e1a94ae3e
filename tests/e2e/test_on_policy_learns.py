"""A student that dialogs have taught little learns the rest from its teacher, on its own answers.

The task is to say four letters backwards. Both begin with dialogs of right answers, the teacher
with many steps, the student, which has a layer less, with few: off-policy distillation on which
on-policy distillation follows.
"""

import json
import random

import pytest
from ranks import run_ranks
from runs import rows, run

from data_prep import tokenizer
from megatron_qwen3.cli import tokenize_dialogs

LETTERS, LENGTH = "abcdefgh", 128
TEACHER_STEPS, STUDENT_STEPS, STEPS = 250, 90, 150


def problems(count, seed):
    random_ = random.Random(seed)
    for _ in range(count):
        word = [random_.choice(LETTERS) for _ in range(4)]
        yield " ".join(word), " ".join(reversed(word))


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """A folder with a tokenizer, tasks, and runs of the teacher and of the student's beginning."""
    home = tmp_path_factory.mktemp("school")
    tokenizer.train([" ".join(LETTERS) + " user assistant think"] * 9, 300, home / "tokenizer")
    asked = [[{"role": "user", "content": q}] for q, _ in problems(1000, seed=1)]
    rules = [{"kind": "exact", "gold": a} for _, a in problems(1000, seed=1)]
    numbered = enumerate(zip(asked, rules, strict=True))
    write(
        home / "tasks.jsonl",
        ({"id": f"t{n}", "messages": m, "verifier": rule} for n, (m, rule) in numbered),
    )
    right = (
        [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        for q, a in problems(2000, seed=0)
    )
    write(home / "dialogs.jsonl", ({"mode": "non-thinking", "messages": m} for m in right))
    words = [home / "dialogs.jsonl", "--out", home / "set", "--tokenizer", home / "tokenizer"]
    assert tokenize_dialogs.main([*map(str, words), "--max-tokens=64", "--workers=1"]) == 0
    for name, steps, more in (
        ("teacher", TEACHER_STEPS, []),
        ("student", STUDENT_STEPS, ["model.num_layers=3", "run.seed=5"]),
    ):
        sources = f'sft.sources=[{{name="set", path="{home}/set"}}]'
        asked = ["run.mode=sft", sources, f"train.steps={steps}", "train.global_batch=16"]
        asked += ["train.micro_batch=16", "optim.lr=3e-3", "optim.warmup_steps=20", *more]
        assert run_ranks(run, 1, [*common(home, name), *asked], timeout_seconds=600) == [0]
    return home


def common(home, name):
    return [
        "model.preset=tiny-dense",
        "model.vocab_size=384",
        "train.precision=fp32",
        f"data.sequence_length={LENGTH}",
        f"data.tokenizer={home}/tokenizer",
        f"run.dir={home}/runs",
        f"run.name={name}",
        "log.tensorboard=false",
        "checkpoint.every_steps=0",
        "run.device=cpu",
    ]


def mean(rows, name):
    return sum(row[name] for row in rows) / len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["reverse_kl", "sampled"])
def test_a_student_learns_what_its_teacher_knows_on_its_own_answers(school, divergence):
    asked = [
        *common(school, divergence),
        "run.mode=distill",
        "model.num_layers=3",
        f"checkpoint.init_from={school}/runs/student",
        f"distill.teacher.path={school}/runs/teacher",
        f"distill.divergence={divergence}",
        f'rollouts.tasks=[{{name="backwards", path="{school}/tasks.jsonl"}}]',
        "rollouts.mode=non_thinking",
        "rollouts.max_new_tokens=12",
        "rollouts.prompts=16",
        "rollouts.samples=4",
        "rollouts.held_out=0.1",
        f"train.steps={STEPS}",
        "train.micro_batch=4",
        "optim.lr=2e-3",
        "optim.warmup_steps=2",
        "eval.every_steps=0",
    ]
    assert run_ranks(run, 1, asked, timeout_seconds=900) == [0]
    home = school / "runs" / divergence
    batches, steps = rows(home, "rollouts"), rows(home, "train")
    assert mean(batches[:3], "pass_rate") < 0.2
    assert mean(batches[-5:], "pass_rate") > 0.8
    assert mean(steps[-5:], "teacher_log_prob") > mean(steps[:3], "teacher_log_prob") + 0.5
    (whole,) = (row for row in rows(home, "eval") if row["source"] == "all")
    assert whole["pass_rate"] > 0.8
