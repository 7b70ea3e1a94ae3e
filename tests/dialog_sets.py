"""Small sets of tokenized dialogs for tests, written without a tokenizer: given samples, or random
ids of which the end of each sample is trained."""

import numpy as np

from megatron_qwen3.posttrain.dialogs.dialog_set import MODES, SAMPLE, DialogSet, DialogSetWriter

VOCABULARY = 512
TOKENIZER = "0" * 64


def write(
    prefix, lengths, seed=0, kind="dialogs", tokenizer=TOKENIZER, labels=("made up",), **columns
):
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
    with DialogSetWriter(prefix, kind, VOCABULARY, tokenizer) as writer:
        writer.add(tokens, np.array(lengths), trained, rows)
        writer.sources += labels
    return str(prefix)


def settings(*sources, length=32, batch=4, mode="sft"):
    """Of a small run on CPUs that trains on {name, path, …} of each source."""
    written = ", ".join(
        "{" + ", ".join(f"{key} = {value!r}" for key, value in each.items()) + "}"
        for each in sources
    )
    return [
        f"run.mode={mode}",
        "model.preset=tiny-moe",
        "model.num_layers=2",
        f"model.vocab_size={VOCABULARY}",
        "train.precision=fp32",
        f"train.global_batch={batch}",
        f"data.sequence_length={length}",
        f"{mode}.sources=[{written}]",
        "optim.schedule=constant",
        "log.tensorboard=false",
        "run.device=cpu",
    ]


def write_set(prefix, samples, *, kind="dialogs", vocab_size=100, tokenizer=TOKENIZER, **columns):
    """A set of [(ids, trained)], and its reader.

    Columns may be given, a value for each sample: `weight` (1), `mode`, a name ("none"), `source`,
    a name ("web"), `dialog` (of its own; of pairs one for two), `margin` (0).
    """
    count = len(samples)
    rows = np.zeros(count, SAMPLE)
    rows["weight"] = columns.get("weight", 1.0)
    rows["margin"] = columns.get("margin", 0.0)
    rows["mode"] = [MODES.index(mode) for mode in columns.get("mode", ["none"] * count)]
    rows["dialog"] = columns.get("dialog", np.arange(count) // (2 if kind == "pairs" else 1))
    names = columns.get("source", ["web"] * count)
    sources = list(dict.fromkeys(names))
    rows["source"] = [sources.index(name) for name in names]
    with DialogSetWriter(prefix, kind, vocab_size, tokenizer) as writer:
        writer.sources += sources
        for (ids, trained), row in zip(samples, rows, strict=True):
            writer.add(np.array(ids), np.array([len(ids)]), np.array(trained, bool), row[None])
    return DialogSet(prefix)


def random_samples(count, *, seed=0, vocab_size=100, shortest=2, longest=40):
    """[(ids, trained)] of lengths between the two, the last token of each trained."""
    chance = np.random.default_rng(seed)
    samples = []
    for length in chance.integers(shortest, longest + 1, count):
        trained = chance.random(length) < 0.5
        trained[-1] = True
        samples.append((chance.integers(0, vocab_size, length), trained))
    return samples


def write_pairs(prefix, lengths, seed=0):
    """A set of kind "pairs": of each two lengths the better and the worse answer."""
    random = np.random.default_rng(seed)
    samples = []
    for length in lengths:
        ends = [False] * length
        ends[-2 if length > 2 else -1] = True  # a line end follows the token that ends an answer
        samples.append((random.integers(0, VOCABULARY, length), ends))
    margins = np.repeat(random.random(len(samples) // 2), 2)
    write_set(prefix, samples, kind="pairs", vocab_size=VOCABULARY, margin=margins)
    return str(prefix)
