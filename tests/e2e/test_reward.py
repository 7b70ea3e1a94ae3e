"""Mode reward through the command line: it learns preferences and resumes to the bit."""

import contextlib
import io
import json

import broken
import chaos
import dialog_sets
import numpy as np
import pytest
import torch
from ranks import RankError, run_ranks
from runs import arguments, power_cut, rows, run

from data_prep import tokenizer
from megatron_qwen3 import train
from megatron_qwen3.chat import ChatTokenizer
from megatron_qwen3.cli import convert_checkpoint, report, score_answers, tokenize_dialogs
from megatron_qwen3.config import load
from megatron_qwen3.generate.__main__ import main as generate
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.dialogs.dialog_set import DialogSet
from megatron_qwen3.posttrain.rewards.answer_lines import read_answers
from megatron_qwen3.posttrain.rows import pair_rows
from megatron_qwen3.posttrain.rows.pair_mixture import PairMixture
from megatron_qwen3.training import engine, saver

transformers = pytest.importorskip("transformers")

STEPS = 6


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Of a short run on a small set of pairs."""
    more = (f"train.steps={STEPS}", "reward.held_out=0.2", "eval.every_steps=3")
    return [*broken.pairs(tmp_path_factory.mktemp("sets")), *more]


def told(arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = train.main(arguments)
    return status, out.getvalue()


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """An undisturbed run, and its messages."""
    home = tmp_path_factory.mktemp("whole")
    (status, text), (other, _) = run_ranks(told, 2, arguments(settings, home))
    assert status == other == 0
    return home / "run", text


def test_each_steps_metrics_are_of_its_pairs_and_held_out_pairs_are_ranked(
    settings, whole, tmp_path
):
    run_dir, text = whole
    assert load([run_dir / "config.toml"]) == load([], arguments(settings, run_dir.parent))
    for row in rows(run_dir, "train"):
        assert row["loss"] == pytest.approx(row["bradley_terry"] + row["centering"], rel=1e-5)
        assert 0 <= row["accuracy"] <= 1 and row["reward_margin"] == row["reward_margin"]
    found = rows(run_dir, "eval")
    assert [(row["step"], row["source"]) for row in found] == [
        (step, name) for step in (3, STEPS) for name in ("pairs", "all")
    ]
    (pairs,) = PairMixture(load([], arguments(settings, run_dir.parent))).sources
    trained, held_out = len(pairs.trained_M), len(pairs.held_out_M)
    assert trained + held_out == 40 and {row["pairs"] for row in found} == {held_out}
    assert f"pairs of pairs: {trained} to train, {held_out} more are held out" in text
    assert f"ranked as given over {held_out} pairs" in " ".join(text.split())
    with contextlib.redirect_stdout(io.StringIO()):
        assert report.main([str(run_dir), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "ranked as given" in page and (tmp_path / "page").is_dir()


def test_a_run_that_was_cut_off_goes_on_as_if_undisturbed(settings, whole, tmp_path):
    asked = arguments(settings, tmp_path)
    with pytest.raises(RankError, match="power cut"):
        run_ranks(power_cut, 2, asked, 4)
    assert run_ranks(run, 2, asked) == [0, 0]
    assert broken.losses(tmp_path / "run") == broken.losses(whole[0])
    evaluations = [rows(home, "eval") for home in (tmp_path / "run", whole[0])]
    assert evaluations[0] == evaluations[1]


@pytest.mark.slow  # runs of pretraining are killed beside the quick tests, in test_chaos.py
@pytest.mark.parametrize(("way", "ranks"), [("kill all", 1), ("in save", 2), ("kill", 2)])
def test_a_run_that_is_killed_loses_no_bit(tmp_path, way, ranks):
    (result,) = chaos.play(tmp_path, 1, 7, ranks, (way,), mode="reward")
    assert result.broke and not result.lost, result


def test_a_run_is_not_gone_on_with_by_other_rows(settings, whole, capsys):
    asked = arguments(settings, whole[0].parent, "train.steps=7", "run.seed=5")
    assert train.main(asked) == 2
    assert "run.seed = 5, but was 1234 when" in capsys.readouterr().err


def poisoned(arguments):
    """A run whose fourth batch has a token that is no id of the model."""
    made, calls = pair_rows.arrays_of, []

    def beyond(*args):
        arrays = made(*args)
        calls.append(None)
        if len(calls) == 4:
            arrays.tokens_BS[0, 0] = 60_000
        return arrays

    pair_rows.arrays_of = beyond
    return told(arguments)


def test_a_bad_batch_is_left_out_and_told_by_the_lines_of_its_pairs(settings, tmp_path):
    ((status, text),) = run_ranks(poisoned, 1, arguments(settings, tmp_path, "eval.every_steps=0"))
    assert status == 0
    text = " ".join(text.split())
    assert "left out: step 4: 1 positions of the global batch have a token" in text
    config = load([], arguments(settings, tmp_path))
    mixture = PairMixture(config)
    named = mixture.describe(mixture.rows(3 * broken.BATCH, broken.BATCH))
    assert f"by the lines of the tokenized files, are {named}" in text
    found = rows(tmp_path / "run", "train")
    assert [row["step"] for row in found] == [1, 2, 3, 5, 6]
    assert found[-1]["tokens"] == 5 * broken.BATCH * broken.LENGTH


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("reward.sources=[]", "reward.sources is empty"),
        ("model.vocab_size=256", "tokenized with 512 tokens, more than model.vocab_size = 256"),
        ("data.sequence_length=4", "which needs room for both answers"),
        ("sft.loss=dialog", 'sft.loss is a setting of run.mode = "sft"'),
        ("model.head=vocabulary", 'model.head = "vocabulary", but run.mode = "reward" trains'),
        ("optim.z_loss=0.1", "optim.z_loss = 0.1 is of logits"),
    ],
)
def test_a_wrong_input_is_told_before_any_rank_starts(settings, tmp_path, capsys, change, says):
    assert train.main(arguments(settings, tmp_path, change)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# It learns

GOOD = ["thanks", "please", "gladly", "welcome", "kindly", "sure"]
BAD = ["never", "whatever", "nonsense", "hate", "stupid", "boring"]
ASKED = ["what is it ?", "can you help ?", "who are you ?", "why so ?"]


def answer(random, kind):
    """Three to eight words, of which most are of a kind."""
    count = int(random.integers(3, 9))
    others = BAD if kind is GOOD else GOOD
    words = [random.choice(kind if n < count - count // 4 else others) for n in range(count)]
    random.shuffle(words)
    return " ".join(words)


def made_up(count, seed):
    """Lines with a polite answer that is chosen, and a rude one; every third has two turns."""
    random = np.random.default_rng(seed)
    for n in range(count):
        messages = [{"role": "user", "content": str(random.choice(ASKED))}]
        if n % 3 == 0:  # what was said before says nothing about the answers
            said = answer(random, [GOOD, BAD][int(random.integers(2))])
            messages += [{"role": "assistant", "content": said}, messages[0]]
        yield {
            "messages": messages,
            "chosen": answer(random, GOOD),
            "rejected": answer(random, BAD),
        }


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """A reward model that has learnt 200 pairs: its run."""
    home = tmp_path_factory.mktemp("school")
    lines = list(made_up(200, seed=1))
    texts = [f"{line['chosen']} {line['rejected']}" for line in lines]
    tokenizer.train([*texts, *ASKED, *["user\n assistant\n"] * 99], 340, home / "tokenizer")
    words = [written(home / "pairs.jsonl", lines), "--out", home / "pairs", "--kind", "pairs"]
    words += ["--tokenizer", home / "tokenizer", "--workers", 1]
    with contextlib.redirect_stdout(io.StringIO()):
        assert tokenize_dialogs.main([str(word) for word in words]) == 0
    more = [
        *dialog_sets.settings(
            {"name": "manners", "path": f"{home}/pairs"}, length=256, batch=4, mode="reward"
        ),
        *("model.preset=tiny-dense", "model.vocab_size=384", f"data.tokenizer={home}/tokenizer"),
        *("train.steps=60", "optim.lr=2e-3", "optim.min_lr=2e-3", "reward.held_out=0.1"),
        *(f"run.dir={home}", "run.name=run"),
    ]
    assert run_ranks(run, 1, more) == [0]
    return home / "run"


def scored(arguments):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        status = score_answers.main([str(argument) for argument in arguments])
    return status, err.getvalue()


def test_a_tiny_model_learns_200_pairs_and_ranks_others(school):
    (last,) = (row for row in rows(school, "eval") if row["source"] == "manners")
    assert last["pairs"] > 10 and last["accuracy"] > 0.9


def test_answers_are_scored_alike_in_our_format_and_transformers_on_one_rank_and_on_two(
    school, tmp_path
):
    lines = list(made_up(30, seed=2))
    talks = [{"messages": line["messages"], "answers": [line["chosen"], line["rejected"]]}
             for line in lines[:3]]  # fmt: skip
    path = written(tmp_path / "pairs.jsonl", [*lines, *talks])
    assert run_ranks(convert, 1, school, tmp_path / "hf") == [0]
    outs = []
    for model, ranks, more in (
        (school, 1, ()),
        (school, 2, ("--row-tokens", "64")),
        (school, 2, ("parallel.context=2", "--row-tokens", "300")),
        (tmp_path / "hf", 2, ("parallel.tensor=2", "--row-tokens", "100")),
    ):
        out = tmp_path / f"scored-{len(outs)}.jsonl"
        (status, said), *_ = run_ranks(scored, ranks, [model, path, "--out", out, *more])
        assert status == 0
        assert "30 pairs, " in said and float(said.split()[2].rstrip("%")) > 90
        outs.append([json.loads(line) for line in out.read_text().splitlines()])
    for found in outs:
        assert [{k: v for k, v in line.items() if k != "scores"} for line in found] == [
            *lines,
            *talks,
        ]
        for line, expected in zip(found, outs[0], strict=True):
            assert line["scores"] == pytest.approx(expected["scores"], abs=2e-5)
        for line, talk in zip(found, found[len(lines) :], strict=False):
            assert line["scores"] == pytest.approx(talk["scores"], abs=2e-5)


def test_an_exported_models_own_template_and_transformers_give_the_scores(school, tmp_path):
    lines = list(made_up(6, seed=3))
    path, out = written(tmp_path / "pairs.jsonl", lines), tmp_path / "scored.jsonl"
    assert run_ranks(convert, 1, school, tmp_path / "hf") == [0]
    ((status, _),) = run_ranks(scored, 1, [school, path, "--out", out])
    expected = [json.loads(line)["scores"] for line in out.read_text().splitlines()]
    network = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    texts = [
        reader.apply_chat_template(
            [*line["messages"], {"role": "assistant", "content": line[name]}], tokenize=False
        )
        for line in lines
        for name in ("chosen", "rejected")
    ]
    batch = reader(texts, padding=True, padding_side="right", return_tensors="pt")
    assert reader.pad_token_id == network.config.pad_token_id
    with torch.no_grad():
        rewards = network.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert rewards.flatten().tolist() == pytest.approx(sum(expected, []), abs=2e-5)
    assert status == 0


def test_what_is_scored_is_what_was_trained(school):
    home = school.parent
    chat = ChatTokenizer(tokenizer.load(home / "tokenizer"))
    dialogs = DialogSet(home / "pairs")
    asked = read_answers(home / "pairs.jsonl", chat)
    answers = [ids for each in asked for ids in each.answers]
    assert len(answers) == len(dialogs) == 400
    for n, answer in enumerate(answers):
        ids, marked = dialogs.read(n)
        assert marked.sum() == 1
        assert ids[: marked.argmax() + 1].tolist() == answer.tolist()


def convert(source, out):
    with contextlib.redirect_stdout(io.StringIO()):
        return convert_checkpoint.main(["to-hf", str(source), str(out)])


def test_a_reward_model_writes_no_text_and_a_language_model_scores_none(school, tmp_path, capsys):
    (tmp_path / "answers.jsonl").write_text("")
    assert generate([str(school), "--prompt", "x"]) == 2
    assert "is a reward model, which writes no text: mq3 score" in capsys.readouterr().err
    more = ["model.preset=tiny-dense", "train.steps=1", f"run.dir={tmp_path}", "run.name=lm"]
    assert run_ranks(language_model, 1, [*more, "run.device=cpu"]) == [0]
    assert score_answers.main([str(tmp_path / "lm"), str(tmp_path / "answers.jsonl")]) == 2
    error = capsys.readouterr().err
    assert "is a language model, which writes text" in error and error.count("\n") == 1


def language_model(arguments):
    config = load([], arguments)
    saver.save(engine.Engine(config, start(config)), config, 1)
    return 0


def test_a_file_without_answers_is_an_error(school, tmp_path, capsys):
    path, out = tmp_path / "answers.jsonl", tmp_path / "out.jsonl"
    path.write_text("\n")
    assert score_answers.main([str(school), str(path), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: {path}: there is no answer in it to score\n"
    assert not out.exists()


@pytest.mark.parametrize("line", ["{", '{"messages": []}'])
def test_a_wrong_line_is_told_before_the_model_is_loaded(school, tmp_path, capsys, line):
    path, out = tmp_path / "answers.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "x"}], "answer": "y"}\n' + line)
    assert score_answers.main([str(school), str(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}, line 2: ") and error.count("\n") == 1
    assert not out.exists()
