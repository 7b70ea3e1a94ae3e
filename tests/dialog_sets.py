"""Small sets of tokenized dialogs for tests: random ids, the end of each sample trained."""

import numpy as np

from megatron_qwen3.posttrain.dialog_set import SAMPLE, DialogSetWriter

VOCABULARY = 512
TOKENIZER = "0" * 64


def write(prefix, lengths, seed=0, kind="dialogs", **columns):
    """A set of samples with `lengths` tokens each; ids and masks of a seed.

    columns: of SAMPLE, in place of weight 1, modes in turn, source 0 and a dialog for each sample.
    """
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCABULARY, sum(lengths))
    ends = np.cumsum(lengths)
    trained = random.random(len(tokens)) < 0.4
    trained[ends - lengths] = False  # nothing predicts a first token
    trained[ends - 1] = True
    rows = np.zeros(len(lengths), SAMPLE)
    rows["weight"], rows["mode"] = 1, np.arange(len(lengths)) % 3
    rows["dialog"] = np.arange(len(lengths))
    for name, values in columns.items():
        rows[name] = values
    with DialogSetWriter(prefix, kind, VOCABULARY, TOKENIZER) as writer:
        writer.add(tokens, np.array(lengths), trained, rows)
        writer.sources.append("made up")
    return str(prefix)


def settings(*sources, length=32, batch=4):
    """Of a small run on CPUs that trains on {name, path, …} of each source."""
    written = ", ".join(
        "{" + ", ".join(f"{key} = {value!r}" for key, value in each.items()) + "}"
        for each in sources
    )
    return [
        "run.mode=sft",
        "model.preset=tiny-moe",
        f"model.vocab_size={VOCABULARY}",
        "train.precision=fp32",
        f"train.global_batch={batch}",
        f"data.sequence_length={length}",
        f"sft.sources=[{written}]",
        "optim.schedule=constant",
        "log.tensorboard=false",
        "run.device=cpu",
    ]
