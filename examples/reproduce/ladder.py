"""Writes the ladder of a seed: three sizes from which a law of the rate is fitted, the sweep of a
fourth that is left out of them, or one run of it by the law.

    python -m examples.reproduce.ladder --texts texts --sizes xs s m --dir a --out a.toml
    python -m examples.reproduce.ladder --texts texts --sizes l --dir b --out b.toml
    python -m examples.reproduce.ladder --texts texts --sizes l --by tuned.toml --dir c --out c.toml

The batch is not swept: of 2, 4 and 8 sequences, on half a million tokens, the smallest was best at
three sizes of four, so that too few optima lay between them for a law.
"""

import argparse
from pathlib import Path

from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.toml import read_toml

# Settings of each size, and a rate below its best: larger models want a lower one.
SIZES = {
    "xs": ((16, 3, 2, 1, 8, 56), 10e-3),
    "s": ((24, 4, 2, 1, 12, 64), 4e-3),
    "m": ((32, 4, 4, 2, 12, 104), 3e-3),
    "l": ((56, 4, 4, 2, 16, 144), 2.5e-3),
}
FIELDS = (
    *("hidden_size", "num_layers", "num_attention_heads", "num_query_groups", "head_dim"),
    "ffn_hidden_size",
)
BATCH = 2  # sequences
FACTORS = [0.5, 1, 2, 4]


def ladder(given: argparse.Namespace) -> str:
    """The file of a study: each size with all rates, or with that of given.by."""
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
        swept = [SIZES[size][1] * factor for factor in given.factors]
        lines.append(_grid(size, given.tokens, [_rate(given.by)] if given.by else swept))
    return "\n".join([*lines, "]", ""])


def _rate(overlay: Path) -> float:
    """The one that `mq3 study laws fit --overlay` wrote."""
    rate: float = read_toml(overlay, "settings")["optim"]["lr"]
    return rate


def _grid(size: str, tokens: float, rates: list[float]) -> str:
    listed = ", ".join(f"{rate:.3g}" for rate in rates)
    return (
        f'    {{ models = ["{size}"], tokens = [{tokens:g}], lr = [{listed}], '
        f'global_batch = [{BATCH}], settings = ["train.micro_batch={BATCH}"] }},'
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
    parser.add_argument("--tokens", type=float, default=400e3)
    parser.add_argument("--factors", type=float, nargs="+", default=FACTORS, help="of rates")
    parser.add_argument("--by", type=Path, metavar="TOML", help="one run, by the law")
    parser.add_argument("--dir", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(given.out, [ladder(given).encode()])


if __name__ == "__main__":
    main()
