"""A tiny model really learns by mode rl: from one right answer in seven to hardly any other.

The task is to say the larger of two numbers. Supervised fine-tuning on answers of which six in
seven name the smaller one makes a model that can read the question and mostly gives the wrong
answer to it. The verifier's word alone makes it give the right one.
"""

import contextlib
import io
import json
import random
import statistics
from itertools import permutations

import dialog_sets
import pytest
from ranks import run_ranks
from runs import rows

from data_prep import tokenizer
from megatron_qwen3 import train
from megatron_qwen3.cli import tokenize_dialogs

NUMBERS = ["zero", "one", "two", "three", "four", "five"]
DIALOGS, RIGHT = 1000, 1 / 7
MODEL = ["model.preset=tiny-dense", "model.num_layers=2", "model.vocab_size=384"]
MODEL += ["train.precision=fp32", "run.device=cpu", "log.tensorboard=false"]


def question(pair):
    first, second = (NUMBERS[n] for n in pair)
    return {"role": "user", "content": f"{first} and {second} ?"}


def answer(number):
    return f"it is {NUMBERS[number]}"


def prepare(home, seed):
    """A tokenizer, tasks with a verifier, and tokenized dialogs that mostly answer wrongly."""
    luck, pairs = random.Random(seed), list(permutations(range(len(NUMBERS)), 2))
    tasks, lines = [], []
    for pair in pairs:
        verifier = {"kind": "exact", "gold": answer(max(pair))}
        task = {"id": str(pair), "messages": [question(pair)], "verifier": verifier}
        tasks.append(json.dumps(task))
    for pair in luck.choices(pairs, k=DIALOGS):
        said = max(pair) if luck.random() < RIGHT else min(pair)
        reply = {"role": "assistant", "content": answer(said)}
        lines.append(json.dumps({"messages": [question(pair), reply], "mode": "non-thinking"}))
    tokenizer.train(lines, 340, home / "tokenizer")
    (home / "tasks.jsonl").write_text("\n".join(tasks))
    (home / "dialogs.jsonl").write_text("\n".join(lines))
    words = [home / "dialogs.jsonl", "--out", home / "set", "--tokenizer", home / "tokenizer"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert tokenize_dialogs.main([*map(str, words), "--workers=1"]) == 0


def cold_start(home, seed):
    return [
        *dialog_sets.settings({"name": "guesses", "path": f"{home}/set"}, length=256, batch=8),
        *MODEL,
        *(f"data.tokenizer={home}/tokenizer", f"run.seed={seed}", f"run.dir={home}"),
        *("run.name=cold", "train.steps=140", "optim.lr=4e-3", "optim.warmup_steps=10"),
    ]


def learning(home, seed):
    return [
        *MODEL,
        *("run.mode=rl", f"run.dir={home}", "run.name=rl", f"run.seed={seed}"),
        *(f"checkpoint.init_from={home}/cold", f"data.tokenizer={home}/tokenizer"),
        f'rollouts.tasks=[{{name="comparing", path="{home}/tasks.jsonl"}}]',
        *("data.sequence_length=512", "rollouts.prompts=32", "rollouts.samples=16"),
        *("rollouts.max_new_tokens=16", "rollouts.rows=512", "rollouts.mode=non_thinking"),
        *("rl.refills=2", "rl.verify_workers=1", "rollouts.held_out=0.0", "rl.most_empty=50"),
        "rl.truncated=zero",
        *("train.steps=60", "optim.lr=1e-3", "optim.schedule=constant", "optim.warmup_steps=5"),
        *("optim.weight_decay=0.0", "optim.beta2=0.98", "eval.every_steps=20"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_tiny_model_learns_to_compare_from_the_verifier_alone(tmp_path, seed):
    prepare(tmp_path, seed)
    assert run_ranks(train.main, 1, cold_start(tmp_path, seed), timeout_seconds=600) == [0]
    assert run_ranks(train.main, 1, learning(tmp_path, seed), timeout_seconds=900) == [0]
    rewards = [row["reward"] for row in rows(tmp_path / "rl", "rollouts")]
    assert rewards[0] < 0.2
    assert statistics.mean(rewards[-5:]) > 0.9
