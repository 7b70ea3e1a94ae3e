"""From launch to the first batch of a curriculum of any size, here and with megatron-core's index.

    python benchmarks/curriculum_scale.py                     # two minutes; sparse files
    python benchmarks/curriculum_scale.py --sources 120 --shard-gtokens 4

Ours: a curriculum of so many sources and tokens over sparse files, read by a fresh process up to
the first 64 sequences: wall and CPU seconds from launch, most resident memory, files opened.
megatron-core's: GPTDataset builds document, sample and shuffle indices of each source, and
BlendedDataset the order of all samples; both are built at sizes that fit here, from files of
documents of 1,000 tokens, and grow with samples (the order with samples times sources), by which
they are extrapolated. At last sequences per second of both from one real file, in turns.
"""

import argparse
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a plain checkout

from data_prep import curriculum
from data_prep.curriculum import Curriculum, Source, Stage, StageShare
from data_prep.fingerprint import mark
from data_prep.indexed import IndexedWriter
from data_prep.stretches import ShardFile
from megatron_qwen3.pretrain.order import apportion

LENGTH, DOCUMENT = 4096, 1000  # tokens of a sequence, of a document
_LAUNCH = """
import os, sys, time
from megatron_qwen3.config import load
from megatron_qwen3.pretrain import record
from megatron_qwen3.pretrain.check import check_inputs
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.files import _reader
path = sys.argv[1]
config = load([], ["model.preset=qwen3-8b", f"data.curriculum={path}", "data.stage=general",
                   "train.steps=1000", "train.global_batch=64", "run.dir=/nonexistent"])
mixture = Mixture(record.prepare(config, 0).parts[-1])
check_inputs(config, mixture)
rows = mixture.batch(mixture.first_sample(0), 64)
assert rows.tokens_BS.shape == (64, 4096)
lines = open("/proc/self/status").read().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(peak / 1024, time.process_time(), _reader.cache_info().misses)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=int, default=1200)
    parser.add_argument(
        "--shard-gtokens", type=float, default=1.0, help="tokens of a shard, in 1e9"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark_curriculum"))
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    try:
        launches(given.folder / "ours", given.sources, int(given.shard_gtokens * 1e9))
        megatron(given.folder / "megatron", given.sources)
        throughput(given.folder / "read")
    finally:
        shutil.rmtree(given.folder, ignore_errors=True)


# ---- ours --------------------------------------------------------------------------------------


def launches(folder: Path, sources: int, shard_tokens: int) -> None:
    """One line for each size of the curriculum."""
    print("from launch to the first batch   sources  shards  wall s   CPU s  peak MiB  opened")
    for tokens in (30 * 10**10, 30 * 10**11, 30 * 10**12):
        path, shards = sparse_curriculum(folder / str(tokens), sources, tokens, shard_tokens)
        runs = [launch(path) for _ in range(5)]
        wall, peak, cpu, opened = (statistics.median(column) for column in zip(*runs, strict=True))
        print(
            f"  {tokens / 1e12:5.1f} T tokens {'':14} {sources:8,} {shards:7,} "
            f"{wall:7.2f} {cpu:7.2f} {peak:9.0f} {opened:7.0f}",
            flush=True,
        )
        shutil.rmtree(folder)


def launch(path: Path) -> tuple[float, float, float, float]:
    """(wall seconds, most MiB, CPU seconds, files opened) of a process that reads a batch."""
    command = [sys.executable, "-c", _LAUNCH, str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[:1])}
    begin = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    peak, cpu, opened = map(float, done.stdout.split())
    return time.perf_counter() - begin, peak, cpu, opened


def sparse_curriculum(
    folder: Path, sources: int, tokens: int, shard_tokens: int
) -> tuple[Path, int]:
    """A stage of so many tokens of sources whose sizes fall like 1/rank, and how many shards."""
    sizes = apportion([10**9 // (rank + 20) for rank in range(sources)], tokens + sources * 2)
    shares, shards = [], 0
    for k, size in enumerate(sizes):
        parts = apportion([1] * -(-size // shard_tokens), size)
        shards += len(parts)
        files = []
        for n, part in enumerate(parts):
            path = f"s{k:04}/{n:05}"
            sparse_shard(folder / path, part)
            files.append(ShardFile(path, part, mark(folder / path)))
        source = Source(f"s{k}", str(folder), tuple(files), 0, {"domain": "web", "language": "xx"})
        shares.append(StageShare(source, source.training_tokens // LENGTH * LENGTH, 0))
    stage = Stage("general", LENGTH, 1.0, tuple(shares))
    curriculum.write(Curriculum(1, {}, 151_669, (stage,)), folder / "curriculum.json")
    return folder / "curriculum.json", shards


def sparse_shard(prefix: Path, tokens: int, document: int = 10**6) -> None:
    """PREFIX.bin of the right size with nothing in it, and a whole .idx of documents of one length.

    The rest is part of the last one.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    lengths = np.full(max(1, tokens // document), document, "<i4")
    lengths[-1] = tokens - (len(lengths) - 1) * document
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(4 * tokens)
    with open(f"{prefix}.idx", "wb") as file:
        count = len(lengths)
        file.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 4, count, count + 1))
        file.write(lengths.tobytes())
        file.write((4 * document * np.arange(count, dtype="<i8")).tobytes())
        file.write(np.arange(count + 1, dtype="<i8").tobytes())


# ---- megatron-core -----------------------------------------------------------------------------


def megatron(folder: Path, sources: int) -> None:
    """Seconds and bytes of its indices at sizes that fit, and for 30 T tokens."""
    from megatron.core.datasets import helpers

    print("megatron-core's index              measured at          s     bytes    at 30 T tokens")
    samples = 30 * 10**12 / LENGTH
    for tokens in (2 * 10**8, 2 * 10**9):
        seconds, size = gpt_index(folder / str(tokens), tokens)
        scale = 30e12 / tokens
        print(
            f"  documents, samples, shuffle  {tokens / 1e9:6.1f} G tokens {seconds:10.2f} "
            f"{size:9,}  {seconds * scale / 3600:6.1f} h {size * scale / 1e9:7.0f} GB",
            flush=True,
        )
    weights = 1.0 / np.arange(20, 20 + sources)
    weights = (weights / weights.sum()).tolist()
    for size in (10**5, 10**6):
        index, earlier = np.zeros(size, np.int16), np.zeros(size, np.int64)
        begin = time.process_time()
        helpers.build_blending_indices(index, earlier, weights, sources, size, False)
        seconds, scale = time.process_time() - begin, samples / size
        print(
            f"  order of {sources:,} sources       {size:10,} samples {seconds:8.2f} "
            f"{10 * size:9,}  {seconds * scale / 3600:6.1f} h {10 * samples / 1e9:7.0f} GB",
            flush=True,
        )


def gpt_index(prefix: Path, tokens: int) -> tuple[float, int]:
    """CPU seconds and bytes of GPTDataset's indices for one epoch of one source."""
    sparse_shard(prefix, tokens, DOCUMENT)
    cache = prefix.with_name(f"{prefix.name}.cache")
    begin = time.process_time()
    gpt_dataset(prefix, cache, tokens // LENGTH - 1)
    seconds = time.process_time() - begin
    size = sum(path.stat().st_size for path in cache.rglob("*.npy"))
    shutil.rmtree(prefix.parent)
    return seconds, size


def gpt_dataset(prefix: Path, cache: Path, samples: int):  # type: ignore[no-untyped-def]
    """megatron-core's dataset over one file."""
    from types import SimpleNamespace

    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    tokenizer = SimpleNamespace(vocab_size=151_669, eod=151_643, pad=151_643, unique_identifiers={})
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=LENGTH,
        blend=([str(prefix)], None),
        split="1",
        path_to_cache=str(cache),
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    source = IndexedDataset(str(prefix))
    documents = np.arange(len(source.document_indices) - 1, dtype=np.int32)
    return GPTDataset(source, str(prefix), documents, samples, Split.train, config)


# ---- reading -----------------------------------------------------------------------------------


def throughput(folder: Path) -> None:
    """Million tokens per CPU second of both from one file of 100 million tokens, in turns."""
    from megatron_qwen3.pretrain.data import Mixture
    from megatron_qwen3.pretrain.record import Feed, RunPart, Start

    prefix, tokens = folder / "text", 10**8
    random = np.random.default_rng(0)
    with IndexedWriter(prefix, np.int32) as writer:
        for _ in range(tokens // 10**6):
            ids = random.integers(0, 151_643, 10**6).astype(np.int32)
            writer.add_documents(ids, np.full(10**6 // DOCUMENT, DOCUMENT))
    source = Source("text", "", (ShardFile(str(prefix), tokens),))
    mixture = Mixture(RunPart(0, 8, LENGTH, None, (Feed(source, 1, Start(1)),)))
    mixture.check_vocabulary(151_936)
    theirs = gpt_dataset(prefix, folder / "cache", tokens // LENGTH - 1)
    rates: dict[str, list[float]] = {"ours": [], "with documents": [], "GPTDataset": []}
    for turn in range(7):
        first = 1_000 * turn
        for name, read in (
            ("ours", lambda first=first: mixture.batch(first, 1_000)),
            ("with documents", lambda first=first: mixture.batch(first, 1_000, True)),
            ("GPTDataset", lambda first=first: [theirs[first + n] for n in range(1_000)]),
        ):
            begin = time.process_time()
            read()
            rates[name].append(1e-6 * 1_000 * LENGTH / (time.process_time() - begin))
    for name, values in rates.items():
        print(f"{name:22} {statistics.median(values):6.0f} million tokens per CPU second")
    ratio = [a / b for a, b in zip(rates["ours"], rates["GPTDataset"], strict=True)]
    print(f"ours / GPTDataset               {statistics.median(ratio):.2f}")


if __name__ == "__main__":
    main()
