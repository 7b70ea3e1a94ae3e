"""Small sets of dialogs, written without a tokenizer."""

import numpy as np

from megatron_qwen3.posttrain.dialog_set import MODES, SAMPLE, DialogSet, DialogSetWriter

TOKENIZER = "0" * 64


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
