"""Writes the ladder of a seed: three sizes from which laws of rate and batch are fitted, the sweep
of a fourth that is left out of them, or one run of it by the laws.

    python -m examples.reproduce.ladder --texts texts --sizes xs s m --dir a --out a.toml
    python -m examples.reproduce.ladder --texts texts --sizes l --dir b --out b.toml
    python -m examples.reproduce.ladder --texts texts --sizes l --by tuned.toml --dir c --out c.toml
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.toml import read_toml

# Settings of each size, and the middle of its rates: larger models want a lower one.
SIZES = {
    "xs": ((16, 3, 2, 1, 8, 56), 12e-3),
    "s": ((24, 4, 2, 1, 12, 64), 8e-3),
    "m": ((32, 4, 4, 2, 12, 104), 5e-3),
    "l": ((56, 4, 4, 2, 16, 144), 4e-3),
}
FIELDS = (
    *("hidden_size", "num_layers", "num_attention_heads", "num_query_groups", "head_dim"),
    "ffn_hidden_size",
)
BATCHES = [2, 4, 8]
FACTORS = [0.5, 1, 2]  # of the middle rate; of a batch of twice the sequences by √2 more


def ladder(given: argparse.Namespace) -> str:
    """The file of a study: each size with all rates and batches, or those of given.by."""
    settings = [
        "examples/studies/quickstart_data.toml",
        f"data.tokenizer={given.texts}/tokenizer",
        f"data.curriculum={given.texts}/curriculum.json",
        f"run.seed={given.seed}",
    ]
    lines = [f'dir = "{given.dir}"', "[models]"]
    for size in given.sizes:
        values = zip(FIELDS, SIZES[size][0], strict=True)
        fields = ["model.preset=tiny-dense", *(f"model.{name}={value}" for name, value in values)]
        lines.append(f"{size} = {_list(fields)}")
    lines += ["[[stages]]", 'name = "general"', f"settings = {_list(settings)}", "grids = ["]
    for size in given.sizes:
        for batch, rates in _by(given.by) if given.by else _swept(size, given):
            lines.append(_grid(size, given.tokens, batch, rates))
    return "\n".join([*lines, "]", ""])


def _swept(size: str, given: argparse.Namespace) -> Iterator[tuple[int, list[float]]]:
    for batch in given.batches:
        middle = SIZES[size][1] * (batch / 4) ** 0.5
        yield batch, [middle * factor for factor in given.factors]


def _by(overlay: Path) -> Iterator[tuple[int, list[float]]]:
    """The one rate and batch that `mq3 study laws fit --overlay` wrote; the middle batch where no
    batch was best inside those that were tried."""
    tuned = read_toml(overlay, "settings")
    if "optim" not in tuned:
        raise SystemExit(f"error: {overlay}: the ladder determined no rate")
    batch = tuned.get("train", {}).get("global_batch", BATCHES[len(BATCHES) // 2])
    yield batch, [tuned["optim"]["lr"]]


def _grid(size: str, tokens: float, batch: int, rates: list[float]) -> str:
    listed = ", ".join(f"{rate:.3g}" for rate in rates)
    return (
        f'    {{ models = ["{size}"], tokens = [{tokens:g}], lr = [{listed}], '
        f'global_batch = [{batch}], settings = ["train.micro_batch={batch}"] }},'
    )


def _list(words: list[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["xs", "s", "m"])
    parser.add_argument("--tokens", type=float, default=500e3)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--factors", type=float, nargs="+", default=FACTORS, help="of rates")
    parser.add_argument("--by", type=Path, metavar="TOML", help="one run, by the laws")
    parser.add_argument("--dir", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(given.out, [ladder(given).encode()])


if __name__ == "__main__":
    main()
