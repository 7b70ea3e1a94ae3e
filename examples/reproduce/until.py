"""Trains a run on, a few steps at a time, until it gets a share of problems right.

    python -m examples.reproduce.until --least 0.2 --tasks held_out.jsonl --out evaluations \\
        stages/distill_1_off_policy.toml models/student.toml run.dir=runs/reproduce/student

Supervised training of small models leaps: after many steps with nothing right most is within a few
dozen. So where a student has to begin in between is found by looking, and not by a number of steps.
Arguments without dashes are those of `mq3 train`, whose learning rate has to be constant.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from megatron_qwen3.config import load

PROGRAM = (sys.executable, "-m", "megatron_qwen3")


def until(given: argparse.Namespace) -> float:
    """The share right at the end: `least` or more, or less after `most` steps."""
    files = [word for word in given.arguments if "=" not in word]
    run = load(files, [word for word in given.arguments if "=" in word]).run_dir
    for steps in range(given.first, given.most + 1, given.by):
        subprocess.run([*PROGRAM, "train", *given.arguments, f"train.steps={steps}"], check=True)
        out = given.out / f"step_{steps}"
        right = _right(Path(run), given.tasks, out)
        print(f"step {steps:,}: {right:.1%} right", flush=True)
        if right >= given.least:
            break
    return right


def _right(run: Path, tasks: Path, out: Path) -> float:
    options = ("--modes", "thinking", "--max-tokens", "160", "--rows", "256", "--most", "200")
    sampling = ("--temperature", "0.6", "--top-p", "1", "--top-k", "0")
    asked = ("--tasks", str(tasks), "--out", str(out))
    subprocess.run([*PROGRAM, "evaluate", str(run), *asked, *options, *sampling], check=True)
    content = json.loads((out / "results.json").read_text())
    value: float = content["conditions"][0]["pass"]["1"]["value"]
    return value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("arguments", nargs="+", help="of mq3 train")
    add("--least", type=float, required=True, help="share of the tasks")
    add("--tasks", type=Path, required=True, metavar="FILE")
    add("--out", type=Path, required=True, metavar="FOLDER", help="of the evaluations")
    add("--first", type=int, default=100, help="steps before the first look (100)")
    add("--by", type=int, default=20, help="steps between looks (20)")
    add("--most", type=int, default=500, help="steps (500)")
    until(parser.parse_args())


if __name__ == "__main__":
    main()
