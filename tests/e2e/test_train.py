"""The command line on small real runs: stages chain, stopped runs go on, faults are told."""

import contextlib
import io
import json
import math
import os
import random
import shutil

import numpy as np
import pytest
import torch
from packed import write_packed
from ranks import RankError, run_ranks

from data_prep import tokenizer
from data_prep.indexed import IndexedReader, IndexedWriter
from megatron_qwen3 import train
from megatron_qwen3.pretrain import files, sources
from megatron_qwen3.pretrain.provenance import locate
from megatron_qwen3.training import checkpoint, engine
from megatron_qwen3.training.stop import CONTINUE

STAGE = """
[run]
name = "{name}"
[model]
rope_theta = {theta}
[data]
sequence_length = {length}
tokenizer = "{folder}/tokenizer"
held_out = 0.1
sources = [
    {{ name = "words", path = "{folder}/words", weight = 0.7 }},
    {{ name = "counts", path = "{folder}/counts", weight = 0.3 }},
]
[train]
steps = {steps}
global_batch = 4
[optim]
lr = 3e-3
schedule = "constant"
[eval]
tokens = 512
[log]
tensorboard = false
[checkpoint]
every_steps = 2
{start}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tokenized sources and three stages of a training over them."""
    folder = tmp_path_factory.mktemp("corpus")
    words = random.Random(0)
    texts = {
        "words": [" ".join(words.choices(["the", "cat", "sat", "on"], k=60)) for _ in range(90)],
        "counts": [" ".join(str(n) for n in range(i, i + 40)) for i in range(60)],
    }
    tokenizer.train([t for docs in texts.values() for t in docs], 300, folder / "tokenizer")
    encoder = tokenizer.DocumentTokenizer(folder / "tokenizer")
    for name, documents in texts.items():
        with IndexedWriter(folder / name, np.uint16) as writer:
            for ids in encoder.encode_documents(documents):
                writer.add_document(np.array(ids))
    stages = [("one", 1e4, 32, 6, ""), ("two", 1e4, 32, 3, "one"), ("three", 1e6, 128, 2, "two")]
    for name, theta, length, steps, before in stages:
        text = STAGE.format(
            name=name,
            theta=theta,
            length=length,
            steps=steps,
            folder=folder,
            start=f'init_from = "{{dir}}/{before}"' if before else "",
        )
        (folder / f"{name}.toml").write_text(text)
    return folder


def arguments(folder, stage, run_dir, *more):
    return [
        str(folder / f"{stage}.toml"),
        "model.preset=tiny-moe",
        "model.num_layers=2",
        "train.precision=fp32",
        f"run.dir={run_dir}",
        *more,
    ]


def rows(run_dir, stage, kind):
    lines = (run_dir / stage / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def losses(run_dir, stage):
    return [row["loss"] for row in rows(run_dir, stage, "train")]


def run_stage(arguments):
    return train.main(arguments)


@pytest.fixture(scope="module")
def two_steps(folder, tmp_path_factory):
    """A run folder: stage one after two steps, done, in float32 on one rank."""
    home = tmp_path_factory.mktemp("two_steps")
    assert run_ranks(run_stage, 1, arguments(folder, "one", home, "train.steps=2")) == [0]
    return home / "one"


@pytest.fixture(scope="module")
def three_steps(folder, tmp_path_factory):
    """A run folder: stage two from a seed, done after its three steps."""
    home = tmp_path_factory.mktemp("three_steps")
    asked = arguments(folder, "two", home, "checkpoint.init_from=")
    assert run_ranks(run_stage, 1, asked) == [0]
    return home / "two"


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (1, ()),
        pytest.param(2, ("parallel.tensor=2", "parallel.expert=2"), marks=pytest.mark.slow),
    ],
)
def test_three_stages_chain(folder, tmp_path, ranks, layout):
    for stage in ("one", "two", "three"):
        status = run_ranks(run_stage, ranks, arguments(folder, stage, tmp_path, *layout))
        assert status == [0] * ranks
        assert checkpoint.find(str(tmp_path / stage)).name.startswith("step_")
        assert (tmp_path / stage / "config.toml").exists()
        evaluated = {row["source"]: row for row in rows(tmp_path, stage, "eval")}
        assert evaluated.keys() == {"words", "counts", "all"}
        assert all(0 < row["bits_per_byte"] < 8 for row in evaluated.values())
    assert losses(tmp_path, "one")[0] == pytest.approx(math.log(512), rel=0.02)
    unmoved = ("run.name=unmoved", "train.steps=1", "optim.lr=1e-30", "optim.min_lr=0", *layout)
    run_ranks(run_stage, ranks, arguments(folder, "two", tmp_path, *unmoved))
    for before, after in zip(
        rows(tmp_path, "one", "eval"), rows(tmp_path, "unmoved", "eval"), strict=True
    ):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-6)
    assert [row["tokens"] for row in rows(tmp_path, "three", "train")] == [512, 1024]


def test_a_stage_does_not_start_from_weights_with_a_flipped_bit(folder, two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "one")
    weights = checkpoint.find(str(tmp_path / "one")) / "__0_0.distcp"
    content = bytearray(weights.read_bytes())
    content[len(content) // 3] ^= 0x40
    weights.write_bytes(content)
    ((status, told),) = run_ranks(refused, 1, arguments(folder, "two", tmp_path))
    assert status == 2 and "__0_0.distcp: its contents are not those that were saved" in told
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["lock"]


def test_a_stage_that_has_begun_goes_on_without_the_run_that_it_started_from(
    folder, two_steps, tmp_path
):
    shutil.copytree(two_steps, tmp_path / "one")
    assert run_ranks(run_stage, 1, arguments(folder, "two", tmp_path, "train.steps=1")) == [0]
    shutil.rmtree(tmp_path / "one")
    assert run_ranks(run_stage, 1, arguments(folder, "two", tmp_path)) == [0]
    assert len(losses(tmp_path, "two")) == 3


def test_metrics_that_are_damaged_are_told_by_file_and_line(folder, two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "one")
    metrics = tmp_path / "one" / "metrics.jsonl"
    metrics.write_text("no row\n" + metrics.read_text())
    ((status, told),) = run_ranks(refused, 1, arguments(folder, "one", tmp_path))
    assert status == 2 and told == f"error: {metrics}, line 1: not a row of metrics\n"


def refused(arguments):
    """Run on a rank: the exit status and the messages."""
    with contextlib.redirect_stderr(io.StringIO()) as told:
        status = train.main(arguments)
    return status, told.getvalue()


@pytest.mark.parametrize(
    ("before", "after"),
    [("fp32", "bf16"), pytest.param("bf16", "fp32", marks=pytest.mark.slow)],
)
def test_a_run_keeps_its_precision_and_another_may_start_from_its_weights(
    folder, two_steps, tmp_path, capsys, before, after
):
    if before == "fp32":
        shutil.copytree(two_steps, tmp_path / "one")
    else:
        asked = arguments(folder, "one", tmp_path, f"train.precision={before}", "train.steps=2")
        assert run_ranks(run_stage, 1, asked) == [0]
    more = arguments(folder, "one", tmp_path, f"train.precision={after}", "train.steps=4")
    assert train.main(more) == 2
    assert f'"{after}", but' in (told := capsys.readouterr().err) and f'with "{before}"' in told
    start = f"checkpoint.init_from={tmp_path}/one"
    unmoved = (start, "run.name=unmoved", "train.steps=1", "optim.lr=1e-30", "optim.min_lr=0")
    assert run_ranks(run_stage, 1, [*more, *unmoved]) == [0]
    one, unmoved = (rows(tmp_path, name, "eval") for name in ("one", "unmoved"))
    for saved, loaded in zip(one, unmoved, strict=True):
        assert loaded["loss"] == pytest.approx(saved["loss"], rel=3e-3)  # bf16 has 8 bits


def test_held_out_loss_does_not_depend_on_the_layout(folder, two_steps, tmp_path):
    found = [{r["source"]: r["loss"] for r in rows(two_steps.parent, "one", "eval")}]
    for name, layout in (("data", ()), ("pipeline", ("parallel.pipeline=2",))):
        asked = arguments(folder, "one", tmp_path / name, "train.steps=2", *layout)
        assert run_ranks(run_stage, 2, asked) == [0, 0]
        found.append({r["source"]: r["loss"] for r in rows(tmp_path / name, "one", "eval")})
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_a_run_goes_on_with_other_weights_lengths_and_batches_where_its_sources_stood(
    folder, tmp_path
):
    first = arguments(folder, "one", tmp_path, "train.steps=3")
    assert run_ranks(run_stage, 2, first) == [0, 0]
    changed = f"""
    [data]
    sources = [
        {{ name = "words", path = "{folder}/words", weight = 0.2 }},
        {{ name = "counts", path = "{folder}/counts", weight = 0.8 }},
    ]
    """
    (tmp_path / "changed.toml").write_text(changed)
    more = (str(tmp_path / "changed.toml"), "data.sequence_length=48", "train.global_batch=6")
    second = arguments(folder, "one", tmp_path, *more, "data.reset_at_documents=true")
    assert run_ranks(run_stage, 1, second) == [0]
    assert [row["step"] for row in rows(tmp_path, "one", "train")] == [1, 2, 3, 4, 5, 6]
    tokens = [row["tokens"] for row in rows(tmp_path, "one", "train")]
    assert tokens == [128, 256, 384, 384 + 288, 384 + 2 * 288, 384 + 3 * 288]
    seen = set()
    for step in range(1, 7):
        for row in range(4 if step <= 3 else 6):
            for piece in locate(tmp_path / "one", step, row).pieces:
                places = {(piece.shard, piece.place + n) for n in range(len(piece.tokens))}
                assert not places & seen
                seen |= places
    assert len(seen) == tokens[-1]


def run_by_name(arguments):
    """The order of samples comes from names alone, whatever the files hold."""
    sources.mark = files.mark = lambda prefix: "0"
    return train.main(arguments)


def test_what_stands_in_filler_changes_no_loss(folder, tmp_path):
    encoder = tokenizer.DocumentTokenizer(folder / "tokenizer")
    texts = [" ".join(str(n) for n in range(i, i + 30)) for i in range(80)]
    documents = [encoder.encode_document(text)[: 19 + i % 9] for i, text in enumerate(texts)]
    found = []
    for filler in (encoder.end_of_document, 7):
        prefix = tmp_path / f"filled_with_{filler}"
        write_packed(prefix, documents, 32, filler, np.uint16)
        assert IndexedReader(prefix).text_R.max() < 32
        source = f'[{{name = "packed", path = "{prefix}"}}]'
        home = tmp_path / str(filler)
        more = (f"data.sources={source}", "data.reset_at_documents=true", "train.steps=2")
        assert run_ranks(run_by_name, 1, arguments(folder, "one", home, *more)) == [0]
        found.append([r["loss"] for kind in ("train", "eval") for r in rows(home, "one", kind)])
    assert len(found[0]) > 2
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def run_and_stop(arguments, at_step, error):
    """Like a run that is killed in step `at_step`."""
    train_step, done = engine.Engine.train_step, []

    def stopping(self, *args):
        done.append(None)
        if len(done) == at_step:
            raise error
        return train_step(self, *args)

    engine.Engine.train_step = stopping
    return train.main(arguments)


def test_a_stopped_run_goes_on_as_if_undisturbed(folder, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_ranks(run_stage, 2, arguments(folder, "one", whole))
    with pytest.raises(RankError, match="power cut"):
        run_ranks(run_and_stop, 2, arguments(folder, "one", stopped), 4, OSError("power cut"))
    run_ranks(run_stage, 2, arguments(folder, "one", stopped))
    assert [row["step"] for row in rows(stopped, "one", "train")] == [1, 2, 3, 4, 5, 6]
    assert losses(stopped, "one") == losses(whole, "one")


def poison(arguments, rank):
    """A run in whose third step the first router of `rank` is not a number."""
    train_step, done = engine.Engine.train_step, []

    def poisoned(self, *args):
        done.append(None)
        if len(done) == 3:
            self.model.synchronize()  # what is gathered later would overwrite the poison
        if len(done) == 3 and os.environ["RANK"] == str(rank):
            self.model.chunks[0].decoder.layers[0].mlp.router.weight.data.fill_(float("nan"))
        return train_step(self, *args)

    engine.Engine.train_step = poisoned
    with contextlib.redirect_stderr(io.StringIO()) as told, pytest.raises(SystemExit) as stopped:
        train.main(arguments)
    return stopped.value.code, told.getvalue()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(folder, tmp_path):
    (status, message), other = run_ranks(poison, 2, arguments(folder, "one", tmp_path), 1)
    assert (status, other) == (1, (1, ""))
    assert "step 3: the loss is not finite at data rank 1" in message
    assert "global samples 8 to 11" in message and "words" in message
    assert "step_00000002, is intact" in message
    saved = checkpoint.find(str(tmp_path / "one"))
    assert checkpoint.step_of(saved) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("optim.weigth_decay=0.1", "optim.weigth_decay is not a setting; did you mean"),
        ("model.preset=qwen3-9b", "qwen3-8b"),
        ("parallel.tensor=3", "parallel.tensor = 3 does not divide"),
        ("model.vocab_size=256", "data.tokenizer"),
        ("data.sequence_length=100000", "fewer than one window"),
        ("checkpoint.init_from=nowhere", "neither a checkpoint nor a run folder"),
        ("run.device=cuda", "torch sees no GPU"),
        ("parallel.pipeline=2", "a world of 1 ranks"),
        ("run.dir={folder}/one.toml", "one.toml is not a folder"),
    ],
)
def test_a_wrong_setting_is_told_before_any_rank_starts(folder, tmp_path, capsys, change, told):
    if change == "run.device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert train.main(arguments(folder, "one", tmp_path, change.format(folder=folder))) == 2
    assert told in capsys.readouterr().err
    assert not torch.distributed.is_initialized()
    assert not (tmp_path / "one").exists()


def test_a_missing_and_a_truncated_data_file_are_told_by_path(folder, tmp_path, capsys):
    for name in ("words.bin", "words.idx", "counts.bin", "counts.idx"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    stage = (folder / "one.toml").read_text().replace(f'"{folder}/', f'"{tmp_path}/')
    stage = stage.replace(f"{tmp_path}/tokenizer", f"{folder}/tokenizer")
    (tmp_path / "stage.toml").write_text(stage)
    rest = ["model.preset=tiny-moe", f"run.dir={tmp_path}/runs"]
    whole = (tmp_path / "words.bin").read_bytes()
    (tmp_path / "words.bin").write_bytes(whole[:-100])
    assert train.main([str(tmp_path / "stage.toml"), *rest]) == 2
    message = capsys.readouterr().err
    assert "words.bin" in message and f"{len(whole):,}" in message
    (tmp_path / "words.bin").unlink()
    assert train.main([str(tmp_path / "stage.toml"), *rest]) == 2
    assert "words.bin" in capsys.readouterr().err


def test_a_finished_run_is_not_trained_again(folder, three_steps, tmp_path):
    shutil.copytree(three_steps, tmp_path / "two")
    before = losses(tmp_path, "two")
    asked = arguments(folder, "two", tmp_path, "checkpoint.init_from=")
    assert run_ranks(run_stage, 1, asked) == [0]
    assert losses(tmp_path, "two") == before


@pytest.mark.parametrize(("steps", "status"), [(2, 0), (3, 0), (4, CONTINUE)])
def test_finished_agrees_with_what_training_again_would_do(folder, three_steps, steps, status):
    asked = arguments(folder, "two", three_steps.parent, "checkpoint.init_from=")
    assert train.main([*asked, f"train.steps={steps}", "--finished"]) == status
