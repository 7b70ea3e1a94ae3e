"""Sets of a run of mode sft: held-out dialogs, the contents of a batch, errors with reasons."""

import json
from collections import Counter
from dataclasses import replace

import dialog_sets
import numpy as np
import pytest
import torch

from data_prep import tokenizer
from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.posttrain.rows import row_order
from megatron_qwen3.posttrain.rows.dialog_mixture import DialogMixture, held_out, told
from megatron_qwen3.posttrain.rows.dialog_rows import arrays_of
from megatron_qwen3.training import tokenizer_check
from megatron_qwen3.training.batch import TokenBatch

LENGTHS = [5, 33, 12, 20, 7, 9, 30, 2, 16, 11] * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    weights = np.arange(len(LENGTHS)) % 3 + 1
    dialogs = np.arange(len(LENGTHS)) // 2  # two samples of each
    dialog_sets.write(folder / "a", LENGTHS, 1, weight=weights, dialog=dialogs)
    dialog_sets.write(folder / "b", [6, 8, 30] * 5, 2)
    dialog_sets.write(folder / "pairs", [6, 8], 3, kind="pairs")
    return folder


def config_of(folder, *more, names="ab", **each):
    sources = [{"name": name, "path": str(folder / name), **each} for name in names]
    return load([], [*dialog_sets.settings(*sources), "train.steps=2", *more])


def places_of(rows):
    return [place for row in rows for place in row]


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_dialog_is_held_out_whole_or_not_at_all_whatever_the_run(folder, fraction):
    config = config_of(folder, f"sft.held_out={fraction}", epochs=1.0)
    mixture = DialogMixture(config)
    held_out = places_of(mixture.held_out(10**6))
    trained = places_of(mixture.rows(0, mixture._packing.total_rows))
    assert sorted([*held_out, *trained]) == [
        (k, n) for k, size in ((0, 60), (1, 15)) for n in range(size)
    ]
    dialogs = [{n // 2 for k, n in places if not k} for places in (held_out, trained)]
    assert not dialogs[0] & dialogs[1]
    assert 0 < len(dialogs[0]) < 30
    other = DialogMixture(config_of(folder, f"sft.held_out={fraction}", "run.seed=7"))
    assert sorted(places_of(other.held_out(10**6))) == sorted(held_out)


def of_dialogs(folder, samples, dialogs):
    return dialog_sets.write_set(folder, samples, dialog=dialogs)


def test_about_the_fraction_of_dialogs_is_held_out_by_their_own_tokens_alone(tmp_path):
    samples = dialog_sets.random_samples(2000, seed=3, longest=600)
    both = of_dialogs(tmp_path / "set", samples, np.arange(2000) // 2)
    before = held_out(both, 0.2)
    assert abs(before.mean() - 0.2) < 4 * (0.2 * 0.8 / 1000) ** 0.5
    assert (before == held_out(both, 0.3))[before].all()  # a larger fraction adds to them
    more = of_dialogs(
        tmp_path / "more", [*samples[:2], *samples], [7, 7, *np.arange(2000) // 2 + 9]
    )
    assert held_out(more, 0.2)[2:].tolist() == before.tolist()
    assert set(held_out(more, 0.2)[:2]) == {before[0]}  # the same dialog once more goes with it
    fewer = of_dialogs(tmp_path / "fewer", samples[1000:], np.arange(1000) // 2)
    assert held_out(fewer, 0.2).tolist() == before[1000:].tolist()
    turned = of_dialogs(tmp_path / "turned", samples[::-1], np.arange(2000)[::-1])
    alone = of_dialogs(tmp_path / "alone", samples, np.arange(2000))
    assert held_out(turned, 0.2)[::-1].tolist() == held_out(alone, 0.2).tolist()


def test_of_two_dialogs_one_is_held_out_and_one_trained_however_small_the_fraction(tmp_path):
    for seed in range(4):
        two = of_dialogs(tmp_path / "two", dialog_sets.random_samples(3, seed=seed), [4, 4, 9])
        for fraction in (1e-9, 0.5, 0.999):
            found = held_out(two, fraction).tolist()
            assert found in ([True, True, False], [False, False, True])
        assert not held_out(two, 0.0).any()
    one = of_dialogs(tmp_path / "one", dialog_sets.random_samples(2), [5, 5])
    assert not held_out(one, 0.9).any()


def test_two_long_dialogs_that_differ_at_an_end_or_in_length_have_two_digests(tmp_path):
    ids = list(range(90)) * 10
    changed = [ids, [1, *ids[1:]], [*ids[:-1], 1], [*ids, 1], ids[:500], [*ids[:499], 1]]
    found = of_dialogs(tmp_path / "long", [(x, [True] * len(x)) for x in changed], range(6))
    assert len({found.digest(n) for n in range(6)}) == 6
    assert found.digest(0) == of_dialogs(tmp_path / "b", [(ids, [False] * 900)], [3]).digest(0)


def test_of_held_out_dialogs_eval_tokens_of_each_source_are_looked_at(folder):
    mixture = DialogMixture(config_of(folder, "sft.held_out=0.5"))
    for tokens in (1, 40, 100):
        used = Counter()
        for k, n in places_of(mixture.held_out(tokens)):
            used[k] += mixture.sources[k].dialogs.lengths_N[n] - 1
        assert len(used) == 2 and all(size <= max(tokens, 32) for size in used.values())
    assert DialogMixture(config_of(folder, "sft.held_out=0")).held_out(100) == []


@pytest.mark.parametrize("loss", ["token", "dialog"])
def test_a_batch_has_each_sample_in_a_stretch_of_its_own_with_its_weights(folder, loss):
    mixture = DialogMixture(config_of(folder))
    rows = mixture.rows(0, 12)
    batch = TokenBatch.of_arrays(arrays_of(rows, mixture, 32, loss))
    begins = iter(batch.stretches.bounds)
    for row, places in enumerate(rows):
        end = 0
        for place in places:
            ids, trained = mixture.sample(place)
            assert next(begins) == 32 * row + end
            here = slice(end, end + len(ids) - 1)
            assert batch.tokens_BS[row, here].tolist() == ids[:-1].tolist()
            assert batch.labels_BS[row, here].tolist() == ids[1:].tolist()
            weights = batch.weights_BS[row, here]
            assert (weights != 0).tolist() == trained[1:].tolist()
            sample_weight = place.sample % 3 + 1 if place.source == 0 else 1
            if loss == "dialog":
                siblings = 2 if place.source == 0 else 1
                assert weights.sum().item() == pytest.approx(sample_weight / siblings)
            else:
                assert set(weights.tolist()) <= {0.0, sample_weight}
            end = here.stop
        if end < 32:
            assert next(begins) == 32 * row + end
        assert batch.valid_BS[row].tolist() == [n < end for n in range(32)]
        assert not batch.weights_BS[row, end:].any()
    assert list(begins) == [12 * 32]
    assert torch.equal(batch.stretches.positions_BS()[0, :3], torch.arange(3))


def test_an_epoch_of_dialogs_weighs_each_the_same_however_many_samples_it_has(tmp_path):
    samples = dialog_sets.random_samples(12, seed=5, longest=20)
    of_dialogs(tmp_path / "a", samples, [0, 0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 4])
    config = config_of(tmp_path, "sft.held_out=0", "train.steps=1", names="a", epochs=1.0)
    mixture = DialogMixture(config)
    rows = mixture.rows(0, mixture._packing.total_rows)
    batch = TokenBatch.of_arrays(arrays_of(rows, mixture, 32, "dialog"))
    weights = Counter()
    for row, places in enumerate(rows):
        end = 0
        for place in places:
            here = slice(end, end + mixture.places(place))
            dialog = mixture.sources[0].dialogs.dialogs_N[place.sample]
            weights[int(dialog)] += batch.weights_BS[row, here].sum().item()
            end = here.stop
    assert weights == pytest.approx(dict.fromkeys(range(5), 1.0))


def test_held_out_samples_too_few_to_judge_by_are_told(folder):
    for fraction in (0.02, 0.5):
        mixture = DialogMixture(config_of(folder, f"sft.held_out={fraction}", names="a"))
        (source,), told = mixture.sources, " ".join(mixture.news())
        few = len(source.held_out_M)
        assert (f"a: a loss over {few} held-out samples means little" in told) == (few < 10)
        assert (few < 10) == (fraction < 0.1)


def test_rows_are_described_by_lines_of_the_input(folder):
    mixture = DialogMixture(config_of(folder, "sft.held_out=0"))
    places = [[(0, 4), (1, 2)], [(0, 0), (0, 5)]]
    assert mixture.describe(places) == "a: 1, 3; b: 3"
    assert told({"a": range(1, 1042)}).endswith("39, 40 and 1,001 more")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"names": ""}, "sft.sources is empty: a run of mode sft needs at least one"),
        (
            {"names": ["none"]},
            "sft.sources.none: {folder}/none.json does not exist: the set of dialogs is not whole, "
            "or no set; mq3 data dialogs --out {folder}/none makes it",
        ),
        ({"names": ["pairs"]}, "holds pairs; valid: dialogs"),
        ({"more": ["model.vocab_size=500"]}, "tokenized with 512 tokens, more than"),
        (
            {"more": ["data.sequence_length=31"]},
            "6 of 60 samples of {folder}/a are longer than data.sequence_length = 31; valid: at "
            "least 32, or tokenize",
        ),
        (
            {"more": ["train.steps=999"], "epochs": 2.0},
            "train.steps asks for 999 steps of 4 rows, but the epochs of [[sft.sources]] fill",
        ),
        ({"more": ["train.steps=0", "train.tokens=1e9"], "epochs": 2.0}, "train.tokens asks for"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(folder, change, says):
    change = dict(change)
    more = change.pop("more", [])
    with pytest.raises(ConfigError) as caught:
        DialogMixture(config_of(folder, *more, **change))
    assert says.format(folder=folder) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_epochs_end_where_the_message_says(folder):
    with pytest.raises(ConfigError) as caught:
        DialogMixture(config_of(folder, "train.steps=999", epochs=2.0))
    most = int(str(caught.value).partition("train.steps of at most ")[2].partition(",")[0])
    mixture = DialogMixture(config_of(folder, f"train.steps={most}", epochs=2.0))
    assert mixture.rows((most - 1) * 4, 4)


def test_another_tokenizer_than_the_sets_is_refused(folder, tmp_path):
    tokenizer.train(["some text to train on"], 300, tmp_path / "tokenizer")
    config = config_of(folder, f"data.tokenizer={tmp_path}/tokenizer")
    with pytest.raises(ConfigError, match="is not the tokenizer of sft.sources.a"):
        DialogMixture(config)
    small = replace(config, model=replace(config.model, vocab_size=100))
    with pytest.raises(ConfigError, match="more than model.vocab_size = 100"):
        tokenizer_check.check_size(small)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("run.seed=7", "run.seed = 7, but was 1234 when"),
        ("train.global_batch=8", "train.global_batch = 8, but was 4 when"),
        ("data.sequence_length=64", "data.sequence_length = 64, but was 32 when"),
        ("sft.held_out=0.5", "sft.held_out = 0.5, but was 0.01 when"),
    ],
)
def test_a_run_goes_on_with_the_rows_that_it_began_with(folder, tmp_path, change, says):
    row_order.write(tmp_path, DialogMixture(config_of(folder)).facts)
    row_order.check(tmp_path, 3, DialogMixture(config_of(folder)).facts)
    other = DialogMixture(config_of(folder, change)).facts
    row_order.check(tmp_path, 0, other)
    with pytest.raises(ConfigError, match="another run.name") as caught:
        row_order.check(tmp_path, 3, other)
    assert says in str(caught.value)
    swapped = DialogMixture(config_of(folder, names="ba")).facts
    with pytest.raises(ConfigError, match="sft.sources is not as it was when"):
        row_order.check(tmp_path, 3, swapped)


def test_rows_do_not_depend_on_where_a_set_lies_or_on_its_name(folder, tmp_path):
    for path in folder.glob("a.*"):
        (tmp_path / f"moved.{path.name.partition('.')[2]}").write_bytes(path.read_bytes())
    here = DialogMixture(config_of(folder, names="a"))
    there = DialogMixture(config_of(tmp_path, names=["moved"]))
    assert here.rows(0, 20) == there.rows(0, 20) and here.facts == there.facts


def test_a_run_that_held_other_dialogs_out_is_refused_with_a_way_out(folder, tmp_path):
    facts = DialogMixture(config_of(folder)).facts
    (tmp_path / row_order.FILE_NAME).write_text(json.dumps({"version": 1, "facts": facts}))
    with pytest.raises(ConfigError, match="is of version 1, .* another run.name") as caught:
        row_order.check(tmp_path, 3, facts)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": 9, "facts": {}}', "\0"])
def test_a_record_of_rows_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / row_order.FILE_NAME).write_text(content)
    with pytest.raises(ConfigError, match="rows.json"):
        row_order.check(tmp_path, 1, {"run.seed": 1})
    (tmp_path / row_order.FILE_NAME).unlink()
    with pytest.raises(ConfigError, match="rows.json is missing"):
        row_order.check(tmp_path, 1, {"run.seed": 1})
