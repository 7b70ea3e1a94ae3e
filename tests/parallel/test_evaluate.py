"""Held-out loss of many sources: by language and domain, each window once, in any layout."""

import numpy as np
import pytest
from ranks import run_ranks

from data_prep.curriculum import ShardFile, Source
from data_prep.indexed import IndexedWriter
from megatron_qwen3.config import load
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.evaluate import evaluate
from megatron_qwen3.pretrain.record import Feed, Part, Start
from megatron_qwen3.training.engine import Engine

LANGUAGES, DOMAINS, LENGTH = 9, ("web", "code", "stem"), 16


@pytest.fixture
def sources(tmp_path):
    """27 sources of 400 tokens, half of them held out but for one that is too small for that."""
    random, sources = np.random.default_rng(0), []
    for n in range(LANGUAGES * len(DOMAINS)):
        with IndexedWriter(tmp_path / f"s{n}", np.int32) as writer:
            writer.add_document(random.integers(0, 512, 400))
        labels = {"language": f"l{n % LANGUAGES}", "domain": DOMAINS[n // LANGUAGES]}
        files = (ShardFile(f"s{n}", 400),)
        sources.append(Source(f"s{n}", str(tmp_path), files, 200 if n else 0, labels))
    return sources


def _evaluated(sources, tokens, *settings):
    given = ["model.preset=tiny-dense", "train.precision=fp32", f"data.sequence_length={LENGTH}"]
    given += ["train.steps=1", "train.global_batch=4", f"eval.tokens={tokens}", *settings]
    config = load([], given)
    engine = Engine(config, start(config))
    feeds = tuple(Feed(source, 1, Start(1)) for source in sources)
    mixture = Mixture(Part(0, 4, LENGTH, None, feeds))
    return evaluate(engine, mixture, config, goes_on=lambda: True)


def test_many_sources_are_told_by_language_and_domain_in_any_layout(sources):
    (alone,) = run_ranks(_evaluated, 1, sources, 9 * LENGTH)
    expected = {f"language l{n}" for n in range(LANGUAGES)} | {f"domain {d}" for d in DOMAINS}
    assert alone.keys() == expected | {"all"}
    assert [*alone][-1] == "all"
    windows = 26 * 3  # three of each source: a language's nine are shared by its three domains
    assert alone["all"].tokens == windows * LENGTH
    for kind in ("language", "domain"):
        of_kind = [result for name, result in alone.items() if name.startswith(kind)]
        assert sum(result.tokens for result in of_kind) == windows * LENGTH
        nats = sum(result.loss * result.tokens for result in of_kind)
        assert nats / (windows * LENGTH) == pytest.approx(alone["all"].loss)
    for other in run_ranks(_evaluated, 2, sources, 9 * LENGTH, "train.micro_batch=2"):
        assert {name: result.loss for name, result in other.items()} == pytest.approx(
            {name: result.loss for name, result in alone.items()}, rel=1e-6
        )


def test_few_sources_are_told_by_name_and_none_where_nothing_is_held_out(sources):
    (few,) = run_ranks(_evaluated, 1, sources[:5], 64)
    assert few.keys() == {"s1", "s2", "s3", "s4", "all"}
    (none,) = run_ranks(_evaluated, 1, sources[:1], 64)
    assert none == {}
