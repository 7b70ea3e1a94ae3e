"""Mode sft through the command line: it teaches both modes and resumes to the bit."""

import contextlib
import io
import json
import random

import broken
import chaos
import dialog_sets
import pytest
from ranks import RankError, run_ranks
from runs import arguments, power_cut, rows, run

from data_prep import tokenizer
from megatron_qwen3 import train
from megatron_qwen3.chat import TURN_END
from megatron_qwen3.cli import report, tokenize_dialogs
from megatron_qwen3.config import load
from megatron_qwen3.convert.load import fill
from megatron_qwen3.generate.__main__ import main as generate
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.rows import dialog_rows
from megatron_qwen3.posttrain.rows.dialog_mixture import DialogMixture
from megatron_qwen3.posttrain.rows.dialog_rows import arrays_of
from megatron_qwen3.storage import folder as folders
from megatron_qwen3.training import checkpoint
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.history import RunHistory
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.stop import CONTINUE

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DIALOGS = 200


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Of a short run on two small sets."""
    home = tmp_path_factory.mktemp("sets")
    more = ("train.steps=6", "sft.held_out=0.2", "eval.every_steps=3")
    return [*broken.dialogs(home), *more]


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    home = tmp_path_factory.mktemp("whole")
    assert run_ranks(run, 2, arguments(settings, home)) == [0, 0]
    return home / "run"


def test_a_finished_run_has_all_that_a_pretraining_leaves(settings, whole, tmp_path):
    asked = arguments(settings, whole.parent)
    assert train.main([*asked, "--finished"]) == 0
    assert load([whole / "config.toml"]) == load([], asked)
    steps = rows(whole, "train")
    mixture = DialogMixture(load([], asked))
    for step, row in enumerate(steps):
        batch = TokenBatch.of_arrays(
            arrays_of(mixture.rows(step * broken.BATCH, broken.BATCH), mixture, 32, "token")
        )
        assert row["trained_tokens"] == (batch.weights_BS != 0).sum().item()
        assert row["filled"] == pytest.approx(batch.valid_BS.float().mean().item())
        assert row["tokens"] == (step + 1) * broken.BATCH * broken.LENGTH
        assert row["loss"] == pytest.approx(row["cross_entropy"])
    evaluated = {(row["step"], row["source"]) for row in rows(whole, "eval")}
    names = ("a", "b", "mode thinking", "mode non-thinking", "all")
    assert evaluated == {(step, name) for step in (3, 6) for name in names}
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert report.main([str(whole), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "mode non-thinking" in page
    trained = sum(row["trained_tokens"] for row in steps)
    assert "trained tokens" in page and f"{trained:.0f}" in page and told.getvalue()
    assert RunHistory.read(whole).column("filled").min() > 0.5


@pytest.mark.parametrize(
    "more", [(), pytest.param(("parallel.tensor=2", "parallel.expert=2"), marks=pytest.mark.slow)]
)
def test_a_run_that_was_cut_off_goes_on_as_if_undisturbed(settings, whole, tmp_path, more):
    asked = arguments(settings, tmp_path, *more)
    with pytest.raises(RankError, match="power cut"):
        run_ranks(power_cut, 2, asked, 4)
    assert run_ranks(run, 2, asked) == [0, 0]
    if not more:
        assert broken.losses(tmp_path / "run") == broken.losses(whole)
        evaluations = [rows(home, "eval") for home in (tmp_path / "run", whole)]
        assert evaluations[0] == evaluations[1]
    else:  # in another layout sums are taken in another order
        for ours, theirs in zip(broken.losses(tmp_path / "run"), broken.losses(whole), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow  # runs of pretraining are killed beside the quick tests, in test_chaos.py
@pytest.mark.parametrize("way", ["in save", "kill", "kill all"])
def test_a_run_that_is_killed_loses_no_bit(tmp_path, way):
    (result,) = chaos.play(tmp_path, 1, 7, 2, (way,), mode="sft")
    assert result.broke and not result.lost, result


def test_a_run_is_not_gone_on_with_by_other_rows_or_in_another_mode(
    settings, whole, tmp_path, capsys
):
    asked = arguments(settings, whole.parent, "train.steps=7")
    assert train.main([*asked, "run.seed=5"]) == 2
    assert "run.seed = 5, but was 1234 when" in capsys.readouterr().err
    pretraining = broken.corpus(tmp_path)
    assert train.main([*arguments(pretraining, whole.parent), "checkpoint.resume=true"]) == 2
    told = capsys.readouterr().err
    assert 'run.mode = "pretrain", but' in told and 'saved with "sft"' in told
    assert train.main([*asked, "--finished"]) == CONTINUE


def poisoned(arguments):
    """A run whose fourth batch has a token that is no id of the model."""
    made, calls = dialog_rows.arrays_of, []

    def beyond(*args):
        arrays = made(*args)
        calls.append(None)
        if len(calls) == 4:
            arrays.tokens_BS[0, 0] = 60_000
        return arrays

    dialog_rows.arrays_of = beyond
    with contextlib.redirect_stdout(io.StringIO()) as told:
        status = train.main(arguments)
    return status, told.getvalue()


def test_a_bad_batch_is_left_out_and_told_by_the_lines_of_its_dialogs(settings, tmp_path):
    ((status, told),) = run_ranks(poisoned, 1, arguments(settings, tmp_path))
    assert status == 0
    assert "left out: step 4: 1 positions of the global batch have a token" in told
    config = load([], arguments(settings, tmp_path))
    mixture = DialogMixture(config)
    named = mixture.describe(mixture.rows(3 * broken.BATCH, broken.BATCH))
    assert f"by the lines of the tokenized files, are {named}" in " ".join(told.split())
    found = rows(tmp_path / "run", "train")
    assert [row["step"] for row in found] == [1, 2, 3, 5, 6]
    assert found[-1]["tokens"] == 5 * broken.BATCH * broken.LENGTH


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("sft.sources=[]", "sft.sources is empty"),
        ("model.vocab_size=256", "tokenized with 512 tokens, more than model.vocab_size = 256"),
        ("data.sequence_length=16", "are longer than data.sequence_length = 16"),
        ("data.curriculum=x.json", 'data.curriculum is a setting of run.mode = "pretrain"'),
        ("checkpoint.init_from=nowhere", "neither a checkpoint nor a run folder"),
    ],
)
def test_a_wrong_input_is_told_before_any_rank_starts(settings, tmp_path, capsys, change, says):
    assert train.main(arguments(settings, tmp_path, change)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# It learns


def question(first, second):
    return f"{NUMBERS[first]} and {NUMBERS[second]} ?"


def dialog(number, pair):
    """A line of JSON: every other dialog thinks and says so, the rest neither."""
    larger, thinks = NUMBERS[max(pair)], number % 2 == 0
    answer = {"role": "assistant", "content": f"it is {larger}"}
    if thinks:
        answer["reasoning_content"] = f"which is larger : {larger}"
    flag = "/think" if thinks else "/no_think"
    asked = {"role": "user", "content": f"{question(*pair)} {flag}"}
    return {"messages": [asked, answer], "mode": "thinking" if thinks else "non-thinking"}


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """A tokenizer, 200 dialogs tokenized by it, and pairs of numbers that none of them asks for."""
    home = tmp_path_factory.mktemp("school")
    luck = random.Random(0)
    pairs = [(a, b) for a in range(10) for b in range(10)]
    luck.shuffle(pairs)
    kept, unseen = pairs[:85], pairs[85:]
    lines = [json.dumps(dialog(n, pair)) for n, pair in enumerate(luck.choices(kept, k=DIALOGS))]
    tokenizer.train(lines, 340, home / "tokenizer")
    (home / "dialogs.jsonl").write_text("\n".join(lines))
    words = [home / "dialogs.jsonl", "--out", home / "set", "--tokenizer", home / "tokenizer"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert tokenize_dialogs.main([*map(str, words), "--workers=1"]) == 0
    return home, unseen


def of_ends(arguments):
    """The probability of the end token where each held-out answer ends."""
    config = load([], arguments)
    model = Model(config, start(config))
    saved = checkpoint.newest(config.run_dir)
    fill(model, saved, "full")
    mixture = DialogMixture(config)
    batch = TokenBatch.of_arrays(
        arrays_of(mixture.held_out(10**6), mixture, config.data.sequence_length, "token")
    )
    log_prob_BS = model.score(batch, log_probs)["log_prob"]
    end = tokenizer.load(config.data.tokenizer).token_to_id(TURN_END)
    is_end_BS = (batch.labels_BS == end) & (batch.weights_BS != 0)
    return log_prob_BS[is_end_BS].exp().tolist()


@pytest.mark.slow
def test_a_tiny_model_learns_from_200_dialogs_to_answer_in_the_mode_that_is_asked_for(
    school, tmp_path
):
    home, unseen = school
    more = [
        *dialog_sets.settings({"name": "school", "path": str(home / "set")}, length=128, batch=8),
        *(
            "model.preset=tiny-dense",
            "model.num_layers=2",
            "model.vocab_size=384",
            f"data.tokenizer={home}/tokenizer",
        ),
        # Long enough that rounding, which differs between processors, decides nothing.
        *("train.steps=140", "optim.lr=4e-3", "optim.warmup_steps=10"),
        *("optim.schedule=wsd", "optim.decay_steps=50", "sft.held_out=0.1"),
        *(f"run.dir={tmp_path}", "run.name=run"),
    ]
    assert run_ranks(run, 1, more, timeout_seconds=200) == [0]
    held_out = {row["source"]: row["loss"] for row in rows(tmp_path / "run", "eval")}
    assert held_out["mode thinking"] < 0.3 and held_out["mode non-thinking"] < 0.3
    probabilities = run_ranks(of_ends, 1, more)[0]
    assert len(probabilities) > 10 and min(probabilities) > 0.9
    asked = [
        {"messages": [{"role": "user", "content": f"{question(*pair)} {flag}"}], "flag": flag}
        for pair in unseen
        for flag in ("/think", "/no_think")
    ]
    path, out = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in asked))
    options = ["--file", path, "--out", out, "--temperature", 0, "--max-new-tokens", 48]
    assert run_ranks(generate, 1, [str(x) for x in (tmp_path / "run", *options)]) == [0]
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(answers) == len(asked)
    for answer in answers:
        made = answer["completion"]
        assert made["finish_reason"] == "stop", made["text"]
        assert bool(made["thinking"]) == (answer["flag"] == "/think"), made["text"]
    assert folders.step_of(folders.newest(tmp_path / "run")) == 140
