"""Rows of packed documents train TRL's tokens, where no document is cut at the end of a row.

A document takes one place less here, since its last token predicts nothing, and what is longer than
a row is no sample: both are given TRL's documents as it cut them.
"""

import numpy as np
import pytest
import torch

from data_prep.best_fit import best_fit
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.posttrain.rows.dialog_rows import arrays_of
from megatron_qwen3.posttrain.rows.packing import PackedPlace
from megatron_qwen3.training.batch import TokenBatch
from tests import golden

CASES = pytest.mark.parametrize("case", golden.cases("rl_losses.json", "packing"))


class Documents:
    """A mixture as rows read it, with every token trained but the first."""

    def __init__(self, documents):
        self.documents = documents

    def sample(self, place):
        ids = np.array(self.documents[place.sample])
        return ids, np.arange(len(ids)) > 0

    def weight(self, place):
        return 1.0


def cut(row, lengths):
    ends = np.cumsum(lengths)
    return [row[end - length : end] for end, length in zip(ends, lengths, strict=True)]


@CASES
def test_documents_share_rows_as_best_fit_has_them(case):
    length, lengths = case["hyper"]["seq_length"], [len(x) for x in case["inputs"]["input_ids"]]
    theirs = case["outputs"]["bfd"]["seq_lengths"]
    cut_short = np.minimum(lengths, length)
    rows = best_fit(cut_short, length)
    # Which of two documents of one length goes where is free.
    assert sorted(sorted(cut_short[list(row)]) for row in rows) == sorted(map(sorted, theirs))


@CASES
def test_each_place_predicts_the_same_token_of_its_own_document(case):
    packed, length = case["outputs"]["bfd"], case["hyper"]["seq_length"]
    for ids, labels, lengths in zip(
        *(packed[n] for n in ("input_ids", "labels", "seq_lengths")), strict=True
    ):
        documents = cut(ids, lengths)
        batch = TokenBatch.of_arrays(
            arrays_of(
                [[PackedPlace(0, n) for n in range(len(documents))]],
                Documents(documents),
                length,
                "token",
            )
        )
        is_trained = batch.weights_BS != 0
        ours = [
            x[is_trained].tolist()
            for x in (batch.stretches.positions_BS(), batch.tokens_BS, batch.labels_BS)
        ]
        theirs = [
            (place - 1, document[place - 1], label)
            for document, of_document in zip(documents, cut(labels, lengths), strict=True)
            for place, label in enumerate(of_document)
            if label != -100
        ]
        assert list(zip(*ours, strict=True)) == theirs and len(theirs) == sum(lengths) - len(
            lengths
        )


@CASES
def test_positions_begin_again_with_each_document(case):
    collated = case["outputs"]["collator_padding_free_first_two_bfd_rows"]
    lengths = sum(case["outputs"]["bfd"]["seq_lengths"][:2], [])
    real, places = sum(lengths), len(collated["input_ids"][0])
    starts = [*np.cumsum([0, *lengths[:-1]]).tolist(), *([real] if real < places else [])]
    stretches = Stretches.of([starts], places)
    positions = torch.tensor(collated["position_ids"])
    assert torch.equal(stretches.positions_BS()[:, :real], positions[:, :real])
    # All padding is one stretch here, and each place of it one there.
    assert stretches.bounds[: len(lengths) + 1] == (*np.cumsum([0, *lengths]).tolist(),)
    assert collated["cu_seq_lens_q"][: len(lengths) + 1] == [*stretches.bounds[: len(lengths) + 1]]
    assert max(stretches.lengths[: len(lengths)]) == collated["max_length_q"]
