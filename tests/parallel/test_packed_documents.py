"""Documents that share a row and are kept apart give the same as each in a row of its own."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from live_memory import LiveMemory
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.model.build import build
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import cross_entropy

POSITIONS, VOCABULARY = 32, 512
LENGTHS = ((32,), (1, 31), (10, 4, 18), (8, 8, 8, 8))  # of the documents of each row
RATE = 1e-3


def _engine(settings):
    config = load(
        [],
        [
            "train.steps=9",
            "train.precision=fp32",
            f"data.sequence_length={POSITIONS}",
            "train.global_batch=4",
            f"model.vocab_size={VOCABULARY}",
            "model.router_aux_loss=0.0",  # it is of rows, which differ
            *settings,
        ],
    )
    return Engine(config, start(config))


def _rows():
    """Four rows of documents, and the same documents one to a row, short ones padded."""
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(0, VOCABULARY, (len(LENGTHS), POSITIONS + 1), generator=random)
    starts = [[0, *itertools.accumulate(lengths[:-1])] for lengths in LENGTHS]
    packed = TokenBatch.of(ids[:, :-1], ids[:, 1:], Stretches.of(starts, POSITIONS))
    singles = []
    for row, lengths in enumerate(LENGTHS):
        begin = 0
        for n in lengths:
            alone = torch.zeros(3, POSITIONS, dtype=torch.int64)
            alone[0, :n] = packed.tokens_BS[row, begin : begin + n]
            alone[1, :n] = packed.labels_BS[row, begin : begin + n]
            alone[2, :n] = 1
            singles.append(alone)
            begin += n
    tokens, labels, weights = torch.stack(singles, 1)
    return packed, TokenBatch(tokens, labels, weights.float())


def _scores(settings, is_apart=True):
    """Scores of packed rows, and, of the same documents alone, the scores in the same order."""
    engine = _engine(settings)
    packed, alone = _rows()
    rows = packed.rows // engine.layout.data
    mine = list(packed.split(rows))[engine.data_rank]
    if not is_apart:
        mine = TokenBatch.of(mine.tokens_BS, mine.labels_BS)
    scores_BS = engine.model.score(mine, log_probs)["log_prob"]
    alone_BS = engine.model.score(alone, log_probs)["log_prob"]
    return engine.data_rank * rows, scores_BS, alone_BS[alone.weights_BS == 1].view(4, POSITIONS)


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, ("model.preset=tiny-dense", "train.micro_batch=4")),
        pytest.param(1, ("model.preset=tiny-moe",), marks=pytest.mark.slow),
        (4, ("model.preset=tiny-moe", "parallel.tensor=2", "parallel.expert=2")),
        (2, ("model.preset=tiny-moe", "parallel.context=2")),
    ],
)
def test_documents_kept_apart_score_as_they_do_alone(ranks, settings):
    for first, scores_BS, alone_BS in run_ranks(_scores, ranks, settings):
        expected_BS = alone_BS[first : first + len(scores_BS)]
        torch.testing.assert_close(scores_BS, expected_BS, rtol=0, atol=1e-5)


def test_documents_not_kept_apart_see_each_other():
    ((_, scores_BS, alone_BS),) = run_ranks(_scores, 1, ("model.preset=tiny-dense",), False)
    assert torch.allclose(scores_BS[0], alone_BS[0], atol=1e-5)
    assert not torch.allclose(scores_BS[1:], alone_BS[1:], atol=1e-3)


def _metrics(settings, packed):
    """Loss and gradient norm of two steps."""
    engine = _engine(settings)
    batch = _rows()[0 if packed else 1]
    rows = batch.rows // engine.layout.data
    mine = list(batch.split(rows))[engine.data_rank]
    return [engine.train_step(mine, cross_entropy, RATE) for _ in range(2)]


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, ("parallel.recompute=full",)),
        (2, ("parallel.pipeline=2", "parallel.virtual_pipeline=2")),
        pytest.param(2, ("parallel.tensor=2", "train.micro_batch=2"), marks=pytest.mark.slow),
    ],
)
def test_documents_kept_apart_train_as_they_do_alone(ranks, settings):
    alone = run_ranks(_metrics, 1, ("model.preset=tiny-dense", "train.global_batch=10"), False)
    for metrics in run_ranks(_metrics, ranks, ("model.preset=tiny-dense", *settings), True):
        for step, expected in zip(metrics, alone[0], strict=True):
            assert step["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert step["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


LAYOUTS = (
    (1, ()),
    (1, ("parallel.recompute=full", "train.micro_batch=2")),
    (2, ("parallel.tensor=2", "train.micro_batch=2")),
    (2, ("parallel.pipeline=2",)),
    (2, ("parallel.context=2",)),
)
LAST = (2, slice(14, 32))  # the last document of the third row


def _with_others_changed(batch):
    """Other tokens everywhere but in LAST."""
    row, places = LAST
    tokens_BS = (batch.tokens_BS + 1 + torch.arange(POSITIONS)) % VOCABULARY
    tokens_BS[row, places] = batch.tokens_BS[row, places]
    return replace(batch, tokens_BS=tokens_BS)


def _scores_and_metrics_of_last(settings):
    """Scores of LAST, and metrics of training it alone: as it is, and with others changed."""
    row, places = LAST
    found = []
    engine = _engine(("model.preset=tiny-dense", *settings))
    batch = _rows()[0]
    weights_BS = torch.zeros(batch.weights_BS.shape)
    weights_BS[row, places] = 1
    batch = replace(batch, weights_BS=weights_BS)
    for given in (batch, _with_others_changed(batch)):
        scores_S = engine.model.score(given, log_probs)["log_prob"][row]
        metrics = engine.train_step(given, cross_entropy, rate=0.0)
        gradients = [
            p.main_grad.clone() for model in engine.model.chunks for p in model.parameters()
        ]
        found.append((scores_S[places], scores_S, metrics, gradients))
    return found


@pytest.mark.parametrize(("ranks", "settings"), LAYOUTS)
def test_no_bit_of_a_document_depends_on_those_beside_it(ranks, settings):
    # Gradients that each rank holds whole, as they are before the optimizer has its share of them.
    whole = ("optim.distributed=false", "optim.clip_grad=0.0", *settings)
    for as_it_is, changed in run_ranks(_scores_and_metrics_of_last, ranks, whole):
        assert torch.equal(as_it_is[0], changed[0])
        assert not torch.equal(as_it_is[1], changed[1])
        assert as_it_is[2] == changed[2] and as_it_is[2]["grad_norm"] > 0
        for before, after in zip(as_it_is[3], changed[3], strict=True):
            assert torch.equal(before, after)


def _peaks(lengths):
    """The most bytes that live at a time in forward and backward, for rows of each length."""
    peaks = []
    for length in lengths:
        if not peaks:
            config = load(
                [],
                [
                    *("train.steps=1", "train.precision=fp32", "train.global_batch=1"),
                    *("model.preset=tiny-dense", "model.num_layers=2"),
                    f"data.sequence_length={max(lengths)}",
                ],
            )
            (model,) = build(config, start(config))
        ids = torch.arange(length + 1)[None] % VOCABULARY
        stretches = Stretches.of([[*range(0, length, 100)]], length)
        batch = TokenBatch.of(ids[:, :-1], ids[:, 1:], stretches)
        with LiveMemory() as memory:
            outputs = log_probs.compute(model(batch.tokens_BS, batch.sequences()), batch)
            outputs["log_prob"].sum().backward()
        peaks.append(memory.peak_bytes)
    return peaks


def test_memory_of_a_model_of_packed_documents_is_linear_in_the_length_of_rows():
    lengths = [1024, 2048, 4096]
    (peaks,) = run_ranks(_peaks, 1, lengths)
    assert np.polyfit(np.log(lengths), np.log(peaks), 1)[0] <= 1.05
