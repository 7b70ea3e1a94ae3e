"""Held-out loss of many sources: by language and domain, each window once, in any layout."""

import math

import numpy as np
import pytest
import torch
from ranks import run_ranks
from theirs import as_theirs, randomize, theirs

from data_prep import tokenizer
from data_prep.curriculum import Source
from data_prep.indexed import IndexedWriter
from data_prep.stretches import ShardFile
from data_prep.tokenizer_file import token_bytes
from megatron_qwen3.config import load
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.evaluate import evaluate
from megatron_qwen3.pretrain.record import Feed, RunPart, Start
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
    mixture = Mixture(RunPart(0, 4, LENGTH, None, feeds))
    return evaluate(engine.model, mixture, config, goes_on=lambda: True)


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


def test_results_are_those_of_the_labels_that_are_asked_for(sources):
    by = 'eval.by=["domain", "language"]'
    (found,) = run_ranks(_evaluated, 1, sources, 9 * LENGTH, by)
    assert found.keys() == {f"{s.labels['domain']}/{s.labels['language']}" for s in sources[1:]} | {
        "all"
    }
    assert {result.tokens for name, result in found.items() if name != "all"} == {9 * LENGTH}
    (one,) = run_ranks(_evaluated, 1, sources, 9 * LENGTH, 'eval.by=["domain"]')
    assert one.keys() == {*DOMAINS, "all"}
    tokens = {name: result.tokens // LENGTH for name, result in one.items()}
    assert tokens == {"web": 8, "code": 9, "stem": 9, "all": 26}  # a window of each source


def test_few_sources_are_told_by_name_and_none_where_nothing_is_held_out(sources):
    (few,) = run_ranks(_evaluated, 1, sources[:5], 64)
    assert few.keys() == {"s1", "s2", "s3", "s4", "all"}
    (none,) = run_ranks(_evaluated, 1, sources[:1], 64)
    assert none == {}


def _documents(folder):
    """Held-out documents of 1 to 20 tokens, one source, and a tokenizer that knows their bytes."""
    random = np.random.default_rng(1)
    words = " ".join("".join(random.choice([*"abcdefgh"], 4)) for _ in range(400))
    tokenizer.train([words], 300, folder / "tokenizer")
    documents = [random.integers(0, 290, 1 + 7 * n % 20) for n in range(60)]
    with IndexedWriter(folder / "docs", np.int32) as writer:
        for ids in documents:
            writer.add_document(ids)
    tokens = sum(len(ids) for ids in documents)
    return documents, Source("docs", str(folder), (ShardFile("docs", tokens),), tokens // 2, {})


def _evaluated_documents(source, *settings):
    """The result of `_evaluated` with weights that show, and these."""
    weights = {}
    begin = Engine.__init__

    def begin_with_weights(self, *args):
        begin(self, *args)
        for model in self.model.chunks:
            randomize(model)
            weights.update({name: p.data for name, p in model.named_parameters()})

    Engine.__init__ = begin_with_weights
    return _evaluated([source], 10**6, *settings)["docs"], weights


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [(1, ()), (2, ("train.micro_batch=2",)), (2, ("parallel.context=2",))],
)
def test_documents_kept_apart_are_scored_as_transformers_scores_each_alone(
    tmp_path, ranks, settings
):
    pytest.importorskip("transformers")
    documents, source = _documents(tmp_path)
    settings += (f"data.tokenizer={tmp_path}/tokenizer", "data.reset_at_documents=true")
    runs = run_ranks(_evaluated_documents, ranks, source, *settings)
    model = load([], ["model.preset=tiny-dense", "train.steps=1"]).model
    network = theirs(model, as_theirs(runs[0][1], model))
    nats, scored = 0.0, []
    for window in _windows_of_documents(documents, source):
        for ids in window:
            if len(ids) > 1:
                log_probs = network(torch.from_numpy(ids)[None]).logits[0, :-1].log_softmax(-1)
                labels = torch.from_numpy(ids[1:])
                nats -= log_probs.gather(1, labels[:, None]).sum().item()
                scored += [*ids[1:]]
    num_bytes = token_bytes(tmp_path / "tokenizer")[scored].sum()
    for result, _ in runs:
        assert result.tokens == len(scored) > 100
        assert result.loss == pytest.approx(nats / len(scored), rel=1e-5)
        assert result.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def _windows_of_documents(documents, source):
    """Per window of held-out text the pieces of documents in it, each with the label after it.

    A window's last label is the first token of the next window.
    """
    ids = np.concatenate(documents)
    number = np.repeat(np.arange(len(documents)), [len(ids) for ids in documents])
    first = len(ids) - source.held_out
    for begin in range(first, len(ids) - LENGTH, LENGTH):
        places = np.arange(begin, begin + LENGTH + 1)
        yield [ids[places[number[places] == n]] for n in np.unique(number[places])]
