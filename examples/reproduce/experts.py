"""Which experts read which domain: counts of a sparse model's routers over texts of each.

    python -m examples.reproduce.experts runs/reproduce/seed_1/balance/last_step \\
        --texts runs/reproduce/data/texts/documents/*.jsonl --out experts.json

OUT has, by layer and domain, each expert's share of the choices, and the mutual information of
domain and expert in nats: 0 where every domain uses all experts alike, at most the logarithm of the
number of domains, where no expert reads two of them.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_qwen3.generate.load import ModelSource, load, tokenizer_of
from megatron_qwen3.parallel import runtime
from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.training.batch import TokenBatch

ROW, ROWS = 128, 32  # tokens of a row, rows of a domain


def counted(run: Path, files: list[Path]) -> dict[str, Any]:
    """Shares [layer][domain][expert] and the mutual information of each layer."""
    source = ModelSource(run)
    config = source.config([], world_size=1, generates=False)
    layout = runtime.start(config)
    model, tokenizer = load(source, config, layout), tokenizer_of(config)
    routers = [layer.mlp.router for chunk in model.chunks for layer in chunk.decoder.layers]
    shares_DLE = []
    for file in files:
        for router in routers:
            router.begin_counting()
        tokens_BS = _rows(file, tokenizer)
        with torch.no_grad():
            model.read(TokenBatch.of(tokens_BS, tokens_BS))
        shares_DLE.append([(r.sums[0] / r.sums[0].sum()).tolist() for r in routers])
    runtime.stop()
    shares_LDE = np.array(shares_DLE).swapaxes(0, 1)
    return {
        "domains": [file.stem for file in files],
        "shares": shares_LDE.tolist(),
        "mutual_information": [mutual_information(shares_DE) for shares_DE in shares_LDE],
    }


def mutual_information(shares_DE: np.ndarray) -> float:
    """Of domain and expert, in nats, where all domains are alike in size."""
    joint_DE = shares_DE / len(shares_DE)
    apart_DE = joint_DE.sum(1, keepdims=True) * joint_DE.sum(0, keepdims=True)
    seen_DE = joint_DE > 0
    return float((joint_DE[seen_DE] * np.log(joint_DE[seen_DE] / apart_DE[seen_DE])).sum())


def _rows(file: Path, tokenizer: Any) -> torch.Tensor:
    """ROWS rows of the file's last documents, which the stages' held-out ends are of."""
    ids: list[int] = []
    for line in reversed(file.read_text().splitlines()):
        ids += tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
        if len(ids) >= ROW * ROWS:
            return torch.tensor(ids[: ROW * ROWS]).view(ROWS, ROW)
    raise SystemExit(f"error: {file} has {len(ids):,} tokens; {ROW * ROWS:,} are needed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--texts", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    given = parser.parse_args()
    found = counted(given.run, given.texts)
    write_whole(given.out, [json.dumps(found).encode()])


if __name__ == "__main__":
    main()
