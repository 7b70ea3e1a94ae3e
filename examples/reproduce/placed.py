"""Copies a study's file with other values for some of its keys: where it lies, its seed, its size.

python -m examples.reproduce.placed study.toml --out here.toml 'dir="runs/here"' seed=2
"""

import argparse
from pathlib import Path

from megatron_qwen3.storage.whole import write_whole


def placed(text: str, pairs: list[str]) -> str:
    """The text with each KEY=VALUE in place of the line `KEY = …`, or before all where there is
    none."""
    for pair in pairs:
        key, _, value = pair.partition("=")
        lines = text.splitlines()
        mine = [n for n, line in enumerate(lines) if line.partition("=")[0].strip() == key]
        place = mine[0] if mine else 0
        lines[place : place + len(mine[:1])] = [f"{key} = {value}"]
        text = "\n".join([*lines, ""])
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("pairs", nargs="+", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(given.out, [placed(given.study.read_text(), given.pairs).encode()])


if __name__ == "__main__":
    main()
