"""36 T tokens in 10,000 and in 200,000 shards: their inventory, a mixture, its first batch.

    python benchmarks/shards_scale.py                  # some minutes; a GB of sparse files
    python benchmarks/shards_scale.py --shards 36000 --cells 60

Each shard has so many cells of 15,232 combinations of labels (119 languages, 8 domains, levels of
quality, lengths). Side by side: the inventory as Parquet, and as the JSON that readers had before;
the curriculum with its stretches beside it, and with all of them in its JSON. Each figure is of a
fresh process: seconds from launch (those of the processor in brackets), most resident memory. The
first batch is 64 sequences; every file is asked for its size before.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a plain checkout

from benchmarks.curriculum_scale import sparse_shard
from data_prep.cells import Cell
from data_prep.inventory import INVENTORY, INVENTORY_JSON, Inventory, write_inventory
from data_prep.labels import LENGTHS, LEVELS, UNKNOWN, Labels
from data_prep.languages import LANGUAGES
from data_prep.mixing.plan import DOMAINS

TOKENS = 36 * 10**12
RECIPE = """
[stages.general]
tokens = 10e12
[stages.general.weights.quality]
high = 2
low = 0.5
[stages.long]
tokens = 1e12
"""
_END = """
import time
lines = open("/proc/self/status").read().splitlines()
peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
print("\\nMEASURED", time.process_time(), peak, *found)
"""
_TABLE = """
import sys
from pathlib import Path
from data_prep.inventory import read_inventory, totals
inventory = read_inventory(Path(sys.argv[1]))
found = [len(inventory.cells), len(totals(inventory, ["language"]))]
"""
_MIX = """
import sys
from data_prep import curriculum, stretches
from megatron_qwen3.cli import mix_curriculum
folder, out, inline = sys.argv[1:]
stretches.INLINE = curriculum.INLINE = int(inline)
assert mix_curriculum.main(["mix", folder, "--recipe", folder + "/recipe.toml", "--out", out,
                            "--no-page", "--rows", "1"]) == 0
found = []
"""
_LAUNCH = """
import sys
from megatron_qwen3.config import load
from megatron_qwen3.pretrain import files, record
from megatron_qwen3.pretrain.check import check_inputs
from megatron_qwen3.pretrain.data import Mixture
config = load([], ["model.preset=qwen3-8b", f"data.curriculum={sys.argv[1]}", "data.stage=general",
                   "train.steps=1000", "train.global_batch=64", "run.dir=/nonexistent"])
mixture = Mixture(record.prepare(config, 0).parts[-1])
check_inputs(config, mixture)
rows = mixture.batch(mixture.first_sample(0), 64)
assert rows.tokens_BS.shape == (64, 4096)
found = [len(mixture.sources), files._reader.cache_info().misses]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[10_000, 200_000])
    parser.add_argument("--cells", type=int, default=5, help="of a shard")
    parser.add_argument("--turns", type=int, default=3, help="of each figure; the median is told")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark_shards"))
    given = parser.parse_args()
    for shards in given.shards:
        shutil.rmtree(given.folder, ignore_errors=True)
        try:
            compared(given.folder, shards, given.cells, given.turns)
        finally:
            shutil.rmtree(given.folder, ignore_errors=True)


def compared(folder: Path, shards: int, cells_of_shard: int, turns: int) -> None:
    made = list(cells(shards, cells_of_shard))
    parquet, as_json = folder / "tokens", folder / "json"
    as_json.mkdir(parents=True)
    parquet.mkdir()
    write_inventory(Inventory(parquet, {}, 151_669, ("in.jsonl",), ()), made)
    about = {"version": 1, "tokenizer": {}, "vocab_size": 151_669, "inputs": ["in.jsonl"]}
    with (as_json / INVENTORY_JSON).open("w") as file:
        file.write(json.dumps(about)[:-1] + ', "shards": [\n')
        file.write(",\n".join(json.dumps(cell.as_json(), indent=1) for cell in made) + "]}")
    print(f"\n{shards:,} shards, {len(made):,} cells, {TOKENS / 1e12:g} T tokens")
    for where, name in ((parquet, INVENTORY), (as_json, INVENTORY_JSON)):
        size = (where / name).stat().st_size
        told(f"{name}: {size / 1e6:,.1f} MB; its languages", [_TABLE, str(where)], turns)
    (parquet / "recipe.toml").write_text(RECIPE)
    lay_files(parquet, list(dict.fromkeys(cell.path for cell in made)), TOKENS // shards)
    for name, inline in (("beside", 10_000), ("within", 1 << 40)):
        out = folder / f"{name}.json"
        told(f"mix, stretches {name} the JSON", [_MIX, str(parquet), str(out), str(inline)], turns)
        size = sum(path.stat().st_size for path in folder.glob(f"{name}*") if path.is_file())
        told(f"curriculum of {size / 1e6:,.1f} MB, first batch", [_LAUNCH, str(out)], turns)


def cells(shards: int, count: int) -> Iterator[Cell]:
    """Of each shard `count` of random sizes, whose labels go round all combinations."""
    ways = list(product(LANGUAGES, DOMAINS, (*LEVELS, UNKNOWN), LENGTHS))
    chance, tokens = np.random.default_rng(0), TOKENS // shards
    for n in range(shards):
        path = f"shards/{n // 64:05}/{n % 64:05}"
        borders = [0, *np.sort(chance.integers(1, tokens, count - 1)).tolist(), tokens]
        documents = chance.integers(1, tokens // 1000, count).tolist()
        first = 0
        for k, (start, end) in enumerate(pairwise(borders)):
            language, domain, quality, length = ways[(n * count + k) % len(ways)]
            labels = Labels("web", language, domain, quality, UNKNOWN, length)
            size = 4 * (end - start) + documents[k]
            yield Cell(path, labels, documents[k], end - start, size, start=start, first=first)
            first += documents[k]


def lay_files(folder: Path, paths: Sequence[str], tokens: int) -> None:
    """Sparse files of all shards. Each .bin begins with its own number; the .idx are one file with
    many names, as many as file systems allow."""
    for n, path in enumerate(paths):
        if n % 30_000 == 0:
            first = folder / "files" / str(n)
            sparse_shard(first, tokens)
        prefix = folder / path
        prefix.parent.mkdir(parents=True, exist_ok=True)
        os.link(f"{first}.idx", f"{prefix}.idx")
        with open(f"{prefix}.bin", "wb") as file:
            file.write(np.array(divmod(n, 1 << 16), "<i4").tobytes())
            file.truncate(4 * tokens)


def told(name: str, arguments: list[str], turns: int) -> None:
    """Print the medians of fresh processes that do this."""
    source, *words = arguments
    environment = os.environ | {"PYTHONPATH": sys.path[0]}
    rows = []
    for _ in range(turns):
        begin = time.perf_counter()
        command = [sys.executable, "-c", source + _END, *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        wall = time.perf_counter() - begin
        rows.append((wall, *map(float, done.stdout.rpartition("MEASURED")[2].split())))
    wall, cpu, peak, *found = (statistics.median(column) for column in zip(*rows, strict=True))
    counted = f"  ({', '.join(f'{n:,.0f}' for n in found)})" if found else ""
    print(f"  {name:48} {wall:7.2f} s ({cpu:6.2f})  {peak:6,.0f} MiB{counted}", flush=True)


if __name__ == "__main__":
    main()
