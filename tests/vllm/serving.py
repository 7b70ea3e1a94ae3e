"""What the tests of vLLM start with: tiny models that it can run, and an engine in ranks.

folders = models(home, "moe", count=3)               # the same model with three sets of weights
with engine_of(folders[0], python, home) as (engine, model): ...       # on a rank
"""

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import tiny
import torch
import transformers

from megatron_qwen3.generate.load import Source, load, stop_ids, tokenizer_of
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.rollouts.vllm import VllmEngine
from megatron_qwen3.settings_rollouts import RolloutsConfig, VllmConfig

HEAD = 32  # the smallest size of a head that vLLM has kernels for on a CPU
CACHE_BYTES = 64 << 20
LENGTH = 256
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
    source = Source(Path(folder))
    config = source.config(list(settings), int(os.environ["WORLD_SIZE"]))
    served = VllmConfig(python=python, cache_bytes=CACHE_BYTES, **vllm)
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
    """What transformers goes on with, without an end."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    row = list(prompt)
    for _ in range(tokens):
        row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
    return row[len(prompt) :]
