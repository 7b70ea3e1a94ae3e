"""A training in one page: mq3 report RUN_DIR [RUN_DIR …]

Reads metrics.jsonl of one or more runs, the stages of one training in order, prints how each went,
and writes a web page that needs no other file, with the pictures beside it as PNG. Of runs whose
model samples answers (run.mode = "rl" or "distill") it has their curves and some answers to read;
a page with more of them is written for each batch that --batches names. Runs that are still under
way may be read at any time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.config import ConfigError
from megatron_qwen3.pages import answers
from megatron_qwen3.pages.rollouts import KeptRollouts, source_rows
from megatron_qwen3.pages.training import stage_rows, write_report
from megatron_qwen3.posttrain.rewards import hacking
from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.watching import samples
from megatron_qwen3.shown import as_json, shown
from megatron_qwen3.tables import console, table
from megatron_qwen3.training.history import RunHistory

_EXAMPLES = """examples:
  mq3 report runs/tiny-dense/pretrain_1_general
  mq3 report runs/8b/pretrain_1_general runs/8b/pretrain_2_reasoning --out 8b.html
  mq3 report runs/8b/post_2_reasoning_rl --batches 0 100 --out rl.html
"""
_BATCHES_OF_EXAMPLES = 8  # newest ones


@ending()
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command line; the exit status."""
    parser = Parser(
        prog=prog,
        description="Print how the stages of a training went and write a page about it.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="run folders, in order")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="page to write; its pictures go to the folder of the same name (default: %(default)s)",
    )
    parser.add_argument(
        "--batches",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="also write the kept answers of these batches of rollouts of the last run, as "
        "batch_N.html beside the pictures",
    )
    text = "print numbers of each stage as JSON instead of tables"
    parser.add_argument("--json", action="store_true", help=text)
    options = parser.parse_args(arguments)
    if options.out.suffix != ".html":
        parser.error(f"--out {options.out}: the name of a page ends in .html")
    runs = [RunHistory.read(folder) for folder in options.runs]
    asked = _asked(options.runs[-1], options.batches)
    if not options.json:
        console().print(table(stage_rows(runs)))
    found = {}
    for n, (folder, run) in enumerate(zip(options.runs, runs, strict=True)):
        if run.rollouts:
            if not options.json:
                console().print(table(source_rows(run), f"Answers of {run.name}", ("mode",)))
            newest = samples.newest(Path(folder), _BATCHES_OF_EXAMPLES)
            found[n] = KeptRollouts(newest, hacking.report(Path(folder)))
    write_report(runs, options.out, found)
    for batch, kept in asked.items():
        subtitle = f"{runs[-1].name}, batch {batch}"
        answers.write(kept, subtitle, options.out.with_suffix("") / f"batch_{batch}.html")
    if options.json:
        print(as_json([_numbers(run) for run in runs]))
        return 0
    print(shown(f"wrote {options.out}, pictures in {options.out.with_suffix('')}"))
    return 0


def _numbers(run: RunHistory) -> dict[str, Any]:
    """Of a stage: its length, its last loss, held-out results by source, and its speed."""
    loss = run.column("loss")
    return {
        "name": run.name,
        "steps": int(run.steps),
        "tokens": int(run.tokens),
        "last_loss": float(loss[-max(1, len(loss) // 50) :].mean()),
        "held_out": run.held_out(),
        "tokens_per_second": run.median("tokens_per_second"),
        "mfu": run.median("mfu"),
    }


def _asked(folder: str, batches: Sequence[int]) -> dict[int, list[samples.KeptAnswer]]:
    """The kept answers of the batches that are asked for. ConfigError where they are not there."""
    there = records.batches(Path(folder))
    for batch in batches:
        if batch not in there:
            valid = f"{there[0]} to {there[-1]}" if there else "none: the run has no rollouts"
            raise ConfigError(
                f"--batches {batch}: no such batch of rollouts in {folder}; valid: {valid}"
            )
    return {batch: samples.read(records.folder_of(Path(folder), batch)) for batch in batches}
