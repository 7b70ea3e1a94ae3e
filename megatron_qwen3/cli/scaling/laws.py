"""scaling_study.py laws: scaling laws of loss, learning rate and batch from a ladder of small runs.

`laws run` trains the ladder that a TOML file describes, on this machine or as SLURM job arrays
(--submit, stage by stage), and fits; finished runs are not run again. `laws fit` fits to run
folders or to a CSV with the columns parameters, tokens, loss and, where known, compute, lr,
batch_tokens, name, stage. Both print the laws, write a page with pictures, and with --model and
--tokens say how to train a larger model.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_qwen3 import tables
from megatron_qwen3.cli import grammar
from megatron_qwen3.config import ConfigError
from megatron_qwen3.named_model import named_model
from megatron_qwen3.pages import laws_rows
from megatron_qwen3.shown import as_json, plain, shown
from megatron_qwen3.storage.whole import write_whole

if TYPE_CHECKING:
    from megatron_qwen3.studies.ladder import Ladder
    from megatron_qwen3.studies.laws import Recommendation

_EXAMPLES = """examples:
  bash examples/quickstart/data.sh runs/studies/data 512 examples/quickstart/studies.toml
  mq3 study laws run examples/studies/ladder_cpu.toml
  mq3 study laws fit runs/ladder --model 8b --tokens 36e12 \\
      --overlay tuned.toml
  mq3 study laws fit published.csv --json
"""


def add_parser(commands: Any) -> None:
    """Add the command to the sub-parsers `commands`."""
    text: dict[str, Any] = {"description": __doc__, "epilog": _EXAMPLES}
    purpose = "scaling laws from a ladder of small runs"
    parser = commands.add_parser("laws", help=purpose, usual="run", **text)
    actions = parser.add_subparsers(required=True, metavar="run | fit")
    train = actions.add_parser("run", help="train a ladder, then fit", **text)
    train.add_argument("ladder", type=Path, metavar="LADDER.toml")
    train.add_argument("--submit", action="store_true", help="as SLURM job arrays, not here")
    train.add_argument("--no-fit", action="store_true", help="train only: laws fit reads the runs")
    grammar.add_minutes(train.add_argument, default=60)
    train.set_defaults(run=_run)
    fit = actions.add_parser("fit", help="fit to runs that are there", **text)
    fit.add_argument("runs", type=Path, nargs="+", metavar="RUNS", help="folders or CSV files")
    fit.set_defaults(run=_fit)
    for action in (train, fit):
        _add_options(action)


def _add_options(action: argparse.ArgumentParser) -> None:
    text = "page to write, .html (default: beside the runs)"
    action.add_argument("--out", type=Path, metavar="FILE", help=text)
    action.add_argument("--json", action="store_true", help="print JSON instead of tables")
    action.add_argument("--draws", type=int, default=200, help="resampled fits (%(default)s)")
    action.add_argument(
        "--min-tokens",
        type=float,
        default=0,
        help="leave shorter runs out: a law does not hold yet while a model only starts to learn",
    )
    target = action.add_argument_group("a run to predict and to tune")
    target.add_argument(
        "--model", help="a size (8b), a TOML file, a config.json, a name of the hub"
    )
    target.add_argument("--tokens", type=float, help="tokens that it will be trained on: 1e12")
    target.add_argument("--sequence-length", type=int, default=4096, help="(%(default)s)")
    target.add_argument("--overlay", type=Path, help="write optim.lr, train.global_batch here")


def _run(given: argparse.Namespace) -> int:
    from megatron_qwen3.studies import ladder as ladders
    from megatron_qwen3.studies import local
    from megatron_qwen3.studies.files import read

    if given.no_fit and given.model:
        raise ConfigError(f"--no-fit and --model {given.model}: without a fit nothing is predicted")
    ladder = read(given.ladder, ladders.Ladder)
    if given.submit and _submit(ladder, given.minutes):
        return 0
    failed = []
    for stage in ladder.stages:
        failed += local.run_all(ladders.points(ladder, stage), f"stage {stage.name}")
    if failed:
        print(f"{len(failed)} runs failed and are left out of the laws", file=sys.stderr)
    if not given.no_fit:
        folders = [
            point.config.run_dir
            for stage in ladder.stages
            for point in ladders.points(ladder, stage)
            if point.is_done
        ]
        _report(given, folders, given.out or Path(ladder.dir) / "laws.html")
    return 1 if failed else 0


def _submit(ladder: "Ladder", minutes: int) -> bool:
    """Submit the first stage that has points left; False where none has."""
    from megatron_qwen3.studies import ladder as ladders
    from megatron_qwen3.studies import slurm

    for stage in ladder.stages:
        points = ladders.points(ladder, stage)
        if all(point.is_done for point in points):
            continue
        folder = Path(ladder.dir) / stage.name
        for script in slurm.write(folder, points, ladder.gpus_per_node, minutes, ladder.sbatch):
            slurm.submit(script)
        if stage is not ladder.stages[-1]:
            print("when they are done, call this again for the next stage", file=sys.stderr)
        return True
    return False


def _fit(given: argparse.Namespace) -> int:
    first = given.runs[0]
    beside = first.with_suffix(".html") if first.suffix.lower() == ".csv" else first / "laws.html"
    _report(given, given.runs, given.out or beside)
    return 0


def _report(given: argparse.Namespace, paths: Sequence[Path], out: Path) -> None:
    from megatron_qwen3.studies import laws, measurements

    if out.suffix != ".html":
        raise ConfigError(f"--out {out}: the name of a page ends in .html")
    target = _target(given)
    runs, left_out = measurements.read(paths)
    short = [run for run in runs if run.tokens < given.min_tokens]
    for line in [*left_out, *(f"{run.name}: {run.tokens:.4g} tokens" for run in short)]:
        print(shown(f"left out: {line}"), file=sys.stderr)
    found = laws.analyse([run for run in runs if run not in short], given.draws)
    advice = [stage.recommend(*target, given.sequence_length) for stage in found if target]
    if given.json:
        print(as_json(laws_rows.as_dict(found, advice)))
    else:
        console = tables.console()
        for part in laws_rows.lines(found, advice):
            console.print(plain(part) if isinstance(part, str) else part)
    if given.overlay:
        _write_overlay(given.overlay, advice)
    from megatron_qwen3.pages.laws import write  # matplotlib loads slowly

    write(found, advice, out)
    print(shown(f"wrote {out}, pictures in {out.with_suffix('')}"), file=sys.stderr)


def _target(given: argparse.Namespace) -> tuple[float, float, float] | None:
    """(N, D, C) of the run to predict; None if none was asked for."""
    if bool(given.model) != bool(given.tokens) or (given.overlay and not given.model):
        raise ConfigError("a run to predict has a --model and --tokens, and --overlay needs both")
    if not given.model:
        return None
    for name in ("tokens", "sequence_length"):
        if not 0 < (value := getattr(given, name)) < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g} must be above 0, and finite")
    from megatron_qwen3.model.flops import flops_per_token
    from megatron_qwen3.studies.measurements import matrix_parameters

    model = named_model(given.model)
    compute = flops_per_token(model, given.sequence_length) * given.tokens
    return matrix_parameters(model), given.tokens, compute


def _write_overlay(path: Path, advice: Sequence["Recommendation"]) -> None:
    """One file; with several stages one per stage that has a law, PATH_STAGE.toml."""
    texts = {one.stage: text for one in advice if (text := one.overlay())}
    if not texts:
        raise ConfigError(f"{path}: the runs determine neither a learning rate nor a batch")
    for stage, text in texts.items():
        name = path.with_stem(f"{path.stem}_{stage}") if len(advice) > 1 else path
        write_whole(name, [text.encode()])
        print(shown(f"wrote {name}"), file=sys.stderr)
