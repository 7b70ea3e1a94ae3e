"""A tiny model really learns by mode rl: it begins with right answers among many, and ends with
hardly any other.

The task is reasoning-gym's chain_sum of two digits. Supervised fine-tuning on answers of which one
in seven is right, and the others are chosen at random, makes a model that knows the form and
guesses; the verifier's word alone makes it calculate.
"""

import contextlib
import io
import json
import random
import statistics

import dialog_sets
import pytest
from ranks import run_ranks

from data_prep import tokenizer
from megatron_qwen3 import train
from megatron_qwen3.cli import tokenize_dialogs
from megatron_qwen3.posttrain.evaluation.tasks import open_source

TASK = "gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1"
DIALOGS, RIGHT = 1500, 1 / 7
MODEL = ["model.preset=tiny-dense", "model.num_layers=2", "model.vocab_size=384"]
MODEL += ["train.precision=fp32", "run.device=cpu", "log.tensorboard=false"]


def dialogs(seed):
    """Lines of JSON: questions with an answer that is seldom right."""
    luck, source = random.Random(seed), open_source(f"{TASK},seed={100 + seed}")
    for number in range(DIALOGS):
        task = source.task(number)
        guess = f"<answer>{luck.randint(-9, 18)}</answer>"
        said = {"role": "assistant", "content": task.gold if luck.random() < RIGHT else guess}
        yield json.dumps({"messages": [*task.messages, said], "mode": "non-thinking"})


@pytest.fixture(scope="module", params=[0, pytest.param(1), pytest.param(2)])
def cold(request, tmp_path_factory):
    """A run folder of a model that answers at random, its tokenizer and its seed."""
    home, seed = tmp_path_factory.mktemp("school"), request.param
    lines = list(dialogs(seed))
    tokenizer.train([*lines, *(f" {n} " for n in range(-9, 19))] * 2, 340, home / "tokenizer")
    (home / "dialogs.jsonl").write_text("\n".join(lines))
    words = [home / "dialogs.jsonl", "--out", home / "set", "--tokenizer", home / "tokenizer"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert tokenize_dialogs.main([*map(str, words), "--workers=1"]) == 0
    source = {"name": "guesses", "path": str(home / "set")}
    settings = [
        *dialog_sets.settings(source, length=256, batch=8),
        *MODEL,
        *(f"data.tokenizer={home}/tokenizer", f"run.seed={seed}", f"run.dir={home}"),
        *("run.name=cold", "train.steps=150", "optim.lr=3e-3", "optim.warmup_steps=10"),
    ]
    assert run_ranks(train.main, 1, settings, timeout_seconds=600) == [0]
    return home, seed


def rows(run_dir, kind):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.mark.slow
def test_a_tiny_model_learns_to_add_from_the_verifier_alone(cold):
    home, seed = cold
    settings = [
        *MODEL,
        *("run.mode=rl", f"run.dir={home}", "run.name=rl", f"run.seed={seed}"),
        *(f"checkpoint.init_from={home}/cold", f"data.tokenizer={home}/tokenizer"),
        f'rollouts.tasks=[{{name="sums", path="{TASK}"}}]',
        *("data.sequence_length=512", "rollouts.prompts=32", "rollouts.samples=16"),
        *("rollouts.max_new_tokens=16", "rollouts.rows=512", "rollouts.mode=non_thinking"),
        *("rl.refills=0", "rl.verify_workers=1", "rollouts.held_out=0.05"),
        *("train.steps=150", "optim.lr=2e-3", "optim.schedule=constant", "optim.warmup_steps=5"),
        *("optim.weight_decay=0.0", "optim.beta2=0.98", "eval.every_steps=50"),
    ]
    assert run_ranks(train.main, 1, settings, timeout_seconds=1200) == [0]
    rewards = [row["reward"] for row in rows(home / "rl", "rollouts")]
    assert rewards[0] < 0.2
    assert statistics.mean(rewards[-5:]) > 0.9
    held_out = [r["pass_rate"] for r in rows(home / "rl", "eval") if r["source"] == "sums"]
    assert held_out[-1] > 0.9
