"""A corpus of labelled documents, as shards, and a study of its mixtures."""

import json
import random

from data_prep.tokenization.corpus import CorpusOptions, tokenize
from data_prep.tokenization.plan import Settings
from data_prep.tokenizer import train

STUDY = """
dir = "{dir}/study"
shards = "{dir}/tokens"
settings = [{settings}]
tokens = 6_400
max_epochs = 2
sequence_length = 16
by = ["domain", "quality"]
min_share = 0.02
proxies = 20
seeds = 2
pull = 0.0
held_out = 0.1
[objective.quality]
high = 1
low = 0
"""
SETTINGS = [
    "model.preset=tiny-dense", "train.precision=fp32", "run.device=cpu", "data.sequence_length=16",
    "train.steps=20", "train.global_batch=8",
]  # fmt: skip
SIZES = {("web", "low"): 120, ("web", "high"): 60, ("code", "low"): 60, ("code", "high"): 40}
_SCORES = {"low": 0.1, "high": 0.9}


def corpus(here, sizes):
    """Shards in here/tokens; sizes: documents by domain and quality, of which low is by chance."""
    words, rows = random.Random(0), []
    for (domain, quality), documents in sizes.items():
        for _ in range(documents):
            text = " ".join(["the cat sat on"] * 10)
            if quality == "low":
                text = " ".join(words.choices(["the", "cat", "sat", "on"], k=40))
            score = _SCORES[quality]
            rows.append({"text": text, "domain": domain, "quality": score, "source": "made"})
    folder = here / "documents"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train([row["text"] for row in rows], 300, folder / "tokenizer")
    chosen = Settings(tokenizer=str(folder / "tokenizer"))
    tokenize([folder / "a.jsonl"], here / "tokens", chosen, CorpusOptions(workers=1))
    return here


def study(here, *changes, settings=SETTINGS):
    """A study file; changes: (old, new) pairs of its text."""
    text = STUDY.format(dir=here, settings=", ".join(map(json.dumps, settings)))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (here / "study.toml").write_text(text)
    return str(here / "study.toml")
