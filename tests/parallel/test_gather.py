"""Weights for servers: from every layout the folder's own tensors, to the bit, a few at a time."""

import os
from math import prod
from pathlib import Path

import pytest
import tiny
import torch
from ranks import run_ranks

from megatron_qwen3.convert.load import fill
from megatron_qwen3.generate.load import ModelSource
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.rollouts import refit
from megatron_qwen3.posttrain.rollouts.gather import EMBEDDING, HEAD, Gathered
from megatron_qwen3.posttrain.rollouts.in_server.mq3_refit import checksum
from megatron_qwen3.training.engine import Engine

safetensors = pytest.importorskip("safetensors.torch")

MODELS = {
    "dense": (None, False),
    "tied": (None, True),
    "moe": (tiny.SPARSE, False),
}
CASES = [
    ("dense", ()),
    ("tied", ("parallel.tensor=2",)),
    ("tied", ("parallel.pipeline=2",)),
    ("dense", ("parallel.tensor=2", "parallel.pipeline=2")),
    ("tied", ("parallel.context=2",)),
    ("moe", ()),
    ("moe", ("parallel.expert=2",)),
    ("moe", ("parallel.context=2", "parallel.expert=2")),
    ("moe", ("parallel.tensor=2", "parallel.expert_tensor=2")),
    ("moe", ("parallel.tensor=2", "parallel.expert=2", "train.precision=bf16")),
]
SMALL = 15_000  # bytes: several tensors in most buckets, and one that is larger than that


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    for name, (sparse, tied) in MODELS.items():
        tiny.save(home / name, sparse, tie_word_embeddings=tied)
    return home


def ranks_of(settings):
    sizes = dict(setting.split("=") for setting in settings)
    return prod(int(sizes.get(f"parallel.{name}", 1)) for name in ("tensor", "context", "pipeline"))


def gathered(folder, settings, out):
    """Of each size of buckets: tensors and the largest buffer, and the values written."""
    source = ModelSource(Path(folder))
    config = source.config(list(settings), int(os.environ["WORLD_SIZE"]), generates=False)
    model = Engine(config, start(config)).model
    fill(model, source.path, verify="")
    weights, found = Gathered(model), []
    for most in (1, SMALL, 1 << 30):
        tensors, largest = {}, 0
        for bucket in weights.buckets(most):
            assert not tensors.keys() & bucket.tensors.keys()
            tensors |= {name: x.clone() for name, x in bucket.tensors.items()}
            largest = max(largest, len(bucket.flat))
        found.append((tensors, largest))
    leads = os.environ["RANK"] == "0"
    written = refit.write(weights, Path(out), SMALL, leads)
    return found, weights.table, written


@pytest.mark.parametrize(
    "name, settings", CASES, ids=lambda x: x if isinstance(x, str) else "-".join(x)
)
def test_every_layout_gives_the_folders_tensors_bucket_by_bucket(folders, tmp_path, name, settings):
    ranks = 2 if "parallel.expert=2" in settings and len(settings) == 1 else ranks_of(settings)
    results = run_ranks(gathered, ranks, folders / name, settings, tmp_path / "weights")
    theirs = safetensors.load_file(folders / name / "model.safetensors")
    if "train.precision=bf16" in settings:
        theirs = {name: x.bfloat16() for name, x in theirs.items()}
    if name == "tied":
        theirs[HEAD] = theirs[EMBEDDING]
    for _, table, _ in results:
        assert table == results[0][1]
    assert all(not tensors for found, *_ in results[1:] for tensors, _ in found)
    found, table, written = results[0]
    kinds = {
        name: [name, list(x.shape), str(x.dtype).removeprefix("torch.")]
        for name, x in theirs.items()
    }
    assert sorted(table) == sorted(kinds.values())
    for tensors, _ in found:
        assert list(tensors) == [name for name, *_ in table]
        assert all(torch.equal(x, theirs[name]) for name, x in tensors.items())
    largest = theirs[EMBEDDING].nbytes * (1 + (name == "tied"))
    assert [size for _, size in found[:2]] == [largest] * 2 and largest > SMALL
    on_disk = safetensors.load_file(tmp_path / "weights" / "model.safetensors")
    assert not written.fault and on_disk.keys() == theirs.keys()
    assert all(torch.equal(x, theirs[name]) for name, x in on_disk.items())
    sums = dict(zip([name for name, *_ in table], written.checksums, strict=True))
    assert sums == {name: checksum(x) for name, x in theirs.items()}


def test_what_cannot_be_written_is_told_and_leaves_no_rank_behind(folders, tmp_path):
    blocked = tmp_path / "file" / "weights"
    blocked.parent.write_text("no folder")
    results = run_ranks(gathered, 2, folders / "dense", ("parallel.tensor=2",), blocked)
    assert "cannot be written" in results[0][2].fault and not results[1][2].fault
