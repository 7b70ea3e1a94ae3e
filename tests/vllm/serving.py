"""The base of vLLM's tests: tiny models that it can run, an engine in ranks, a teacher.

folders = models(home, "moe", count=3)               # the same model with three sets of weights
with engine_of(folders[0], python, home) as (engine, model): ...       # on a rank
with teacher_of(folder, python, home) as address: ...

A server takes twenty seconds of a core to start, and minutes where others want it. A failure is
told at once, so all that waits here may wait long: SECONDS end a hang.
"""

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import transformers

from megatron_qwen3.config import load as load_config
from megatron_qwen3.generate.load import ModelSource, load, stop_ids, tokenizer_of
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.rollouts import vllm_server
from megatron_qwen3.posttrain.rollouts.vllm import VllmEngine
from megatron_qwen3.settings_rollouts import RolloutsConfig, VllmConfig

SECONDS, START_SECONDS = 3000, 1200
HEAD = 32  # the smallest size of a head that vLLM has kernels for on a CPU
CACHE_BYTES = 64 << 20
LENGTH = 256
# One thread computes, where several would wait for each other, and it does so in the process of the
# engine, as on a GPU: one process fewer has to start.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
OPTIONS = ("--distributed-executor-backend=uni",)
KINDS = {"dense": (None, False), "tied": (None, True), "moe": (tiny.SPARSE, False)}


def models(home, kind, count=1):
    """Folders with the same tokenizer and shapes, and weights of their own."""
    sparse, tied = KINDS[kind]
    folders = [home / f"{kind}-{number}" for number in range(count)]
    for number, folder in enumerate(folders):
        tiny.save(folder, sparse, number, head_dim=HEAD, tie_word_embeddings=tied)
    return folders


@contextlib.contextmanager
def engine_of(folder, python, home, settings=(), temperature=1.0, **vllm):
    """(engine, model) on a rank; settings: of the layout, vllm: of [rollouts.vllm]."""
    prepare()
    source = ModelSource(Path(folder))
    config = source.config(list(settings), int(os.environ["WORLD_SIZE"]))
    usual = {"cache_bytes": CACHE_BYTES, "start_seconds": START_SECONDS, "options": OPTIONS}
    served = VllmConfig(python=python, **usual | vllm)
    config = replace(
        config,
        run=replace(config.run, dir=str(home), name="served"),
        data=replace(config.data, sequence_length=LENGTH),
        rollouts=RolloutsConfig(engine="vllm", temperature=temperature, vllm=served),
    )
    tokenizer = tokenizer_of(config)
    model = load(source, config, start(config))
    ends = stop_ids(source, config, tokenizer)
    with VllmEngine(config, model, ends, lambda n: ThinkingBudget.of(tokenizer, n)) as engine:
        yield engine, model


def prepare():
    """Of a rank: the environment that servers inherit."""
    os.environ |= ENVIRONMENT


def settings_of(python):
    """Of a run that starts its servers."""
    return [
        "rollouts.engine=vllm",
        f"rollouts.vllm.python={python}",
        f"rollouts.vllm.cache_bytes={CACHE_BYTES}",
        f"rollouts.vllm.start_seconds={START_SECONDS}",
        f"rollouts.vllm.options=['{OPTIONS[0]}']",
    ]


@contextlib.contextmanager
def teacher_of(folder, python, home, most_log_probs=20):
    """The address of a folder's model, as people serve one that is to be a teacher."""
    served = VllmConfig(python=python, start_seconds=START_SECONDS)
    config = load_config([], ["model.preset=tiny-dense", "train.steps=1", f"run.dir={home}"])
    config = replace(config, rollouts=RolloutsConfig(engine="vllm", vllm=served))

    def command(config, folder, port, *_):
        words = [python, "-m", "vllm.entrypoints.cli.main", "serve", str(folder)]
        words += ["--host=127.0.0.1", f"--port={port}", "--dtype=float32", "--enforce-eager"]
        words += [f"--max-model-len={LENGTH}", f"--max-logprobs={most_log_probs}"]
        return [*words, "--block-size=32", f"--kv-cache-memory-bytes={CACHE_BYTES}", *OPTIONS]

    # Its folder goes only where the one who started it was killed.
    server = vllm_server.Server(config, 0, True, Path(folder), Path(home) / "teacher.log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_server, "command", command)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        server.start()
    try:
        while not server.is_ready():
            time.sleep(0.2)
        yield f"{server.url}/v1"
    finally:
        server.kill()


@torch.no_grad()
def theirs(folder, rows, temperature=1.0):
    """Log-probabilities by transformers of each token after the first of each row."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for row in rows:
        ids = torch.tensor([row])
        log_p_V = (model(ids).logits[0, :-1] / temperature).log_softmax(-1)
        found.append(log_p_V.gather(-1, ids[0, 1:, None])[:, 0].tolist())
    return found


@torch.no_grad()
def greedy(folder, prompt, tokens):
    """The continuation by transformers, without an end."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    row = list(prompt)
    for _ in range(tokens):
        row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
    return row[len(prompt) :]
