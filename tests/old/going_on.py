"""The runs of the old things: how they began, and how they go on; for ranks of tests/ranks.py."""

import os
import signal

# name of the run: its settings, and after which step it was told to stop
TINY = [
    "model.hidden_size=8",
    "model.num_attention_heads=2",
    "model.num_query_groups=2",
    "model.head_dim=4",
    "train.global_batch=2",
    "data.sequence_length=16",
    "optim.lr=1e-3",
    "log.tensorboard=false",
    "run.dir=runs",
    "run.device=cpu",
    "checkpoint.keep=1",
]
EXPERTS = [
    "model.num_layers=2",
    *("model.preset=tiny-moe", "model.vocab_size=32", "model.num_experts=4"),
    *("model.ffn_hidden_size=16", "model.expert_ffn_hidden_size=8", "train.precision=fp32"),
]
DENSE = ["model.preset=tiny-dense", "model.num_layers=1", "model.ffn_hidden_size=16"]


def mixture(**weights):
    """[[data.sources]] on the command line."""
    tables = (
        f'{{name = "{name}", path = "data/{name}", weight = {weight}}}'
        for name, weight in weights.items()
    )
    return f"data.sources=[{', '.join(tables)}]"


SOURCES = [*TINY, *EXPERTS, mixture(a=0.6, b=0.4), "data.held_out=0.1", "train.steps=8"]
STAGE_TWO = [*TINY, *EXPERTS, mixture(b=0.5, c=0.5), "data.held_out=0.1", "train.steps=6"]
START = "checkpoint.init_from=runs/sources"
RUNS = {
    # in the middle of a stage, the batch of its third step left out; no weight decay, so that
    # every later loss says whether moments and steps were read
    "sources": ([*SOURCES, "run.name=sources", "optim.weight_decay=0"], 5),
    # a stage that began with the weights of `sources` and where its sources stood
    "stage_two": ([*STAGE_TWO, START, "run.name=stage_two"], 2),
    "curriculum": (
        [
            *(*TINY, *DENSE, "model.vocab_size=300", "train.precision=fp32", "train.steps=12"),
            *("data.curriculum=curriculum.json", "data.stage=general", "run.name=curriculum"),
            *("data.sequence_length=16", "train.global_batch=4", "data.tokenizer=tokenizer"),
        ],
        3,
    ),
    "bf16": (
        [
            *(*TINY, *DENSE, "model.vocab_size=32", "train.precision=bf16", "train.steps=6"),
            *(mixture(a=1, c=2), "data.held_out=0.1", "run.name=bf16"),
        ],
        2,
    ),
}
# stages that nobody has begun: by init_from of a run that is in the middle of its own
CHAIN = {
    "after_sources": [
        *(*TINY, *EXPERTS, mixture(a=0.3, b=0.7), "data.held_out=0.1", "train.steps=4"),
        *(START, "run.name=after_sources"),
    ],
    "after_curriculum": [
        *(*RUNS["curriculum"][0], "data.stage=reasoning", "run.name=after_curriculum"),
        *("checkpoint.init_from=runs/curriculum", "train.steps=4"),
    ],
}

# of tools/: those that end the cleaning and the tokenization that were begun
CLEAN = (
    *("clean_corpus.py", "run", "notes:reference=raw", "--no-filters", "--tasks", "2"),
    *("--workers", "1", "--out"),
)
FINISH_TOKENS = (
    *("tokenize_corpus.py", "clean/documents", "--out", "tokens_begun", "--tokenizer"),
    *("tokenizer", "--group-gb", "1e-9", "--workers", "1"),
)


def settings_of(name):
    return CHAIN[name] if name in CHAIN else RUNS[name][0]


def begin(home, name):
    """Train until a signal after some step makes the run save and stop; whether it did."""
    import torch

    from megatron_qwen3 import train
    from megatron_qwen3.training import engine
    from megatron_qwen3.training.stop import CONTINUE

    os.chdir(home)
    settings, last = RUNS[name]
    train_step, done = engine.Engine.train_step, []

    def told(self, batch, loss, *args):
        def no_number(outputs, micro):
            return loss(outputs, micro) * torch.nan

        done.append(None)
        if len(done) == last:
            os.kill(os.getpid(), signal.SIGUSR1)
        bad = name == "sources" and len(done) == 3
        return train_step(self, batch, no_number if bad else loss, *args)

    engine.Engine.train_step = told
    return train.main(settings) == CONTINUE


def go_on(home, name, *more):
    """Train to the end; per step {"step", "loss", "grad_norm", "tokens": this rank's rows}."""
    import json

    from megatron_qwen3 import train
    from megatron_qwen3.training import engine

    os.chdir(home)
    train_step, read = engine.Engine.train_step, []

    def noting(self, batch, *args):
        read.append(batch.tokens_BS.tolist())
        return train_step(self, batch, *args)

    engine.Engine.train_step = noting
    assert train.main([*settings_of(name), *more]) == 0
    with open(f"runs/{name}/metrics.jsonl") as file:
        rows = [row for row in map(json.loads, file) if row["kind"] == "train"]
    rows = rows[len(rows) - len(read) :]
    return [
        {key: row[key] for key in ("step", "loss", "grad_norm")} | {"tokens": tokens}
        for row, tokens in zip(rows, read, strict=True)
    ]
