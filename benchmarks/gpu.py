"""Check and measure a machine with one GPU: its packages, whether they are right, how fast they
are.

No network, about 8 minutes, the most important first. After every word of every case all results so
far are in OUT/gpu.json, at the end on one page, OUT/gpu.md; the output of cases is in OUT/gpu.log.
Each case has a limit of its own and a process that may crash or hang. The same call again runs the
cases that are not over yet.
"""

import argparse
import contextlib
import math
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from on_gpu import page, plan, wheels
from on_gpu.aims import aims
from on_gpu.cases import Case, Options
from on_gpu.record import LEFT_OUT, NOT_BEGUN, PASSED, Record
from on_gpu.runner import Runner

from megatron_qwen3 import tables
from megatron_qwen3.cli.parser import Parser, number
from megatron_qwen3.settings import ConfigError
from megatron_qwen3.shown import plain, shown
from megatron_qwen3.storage.whole import write_whole

EXAMPLES = """parts, in the order in which their most important cases run:
{parts}

examples:
  python benchmarks/gpu.py                                     # all of it, with installed packages
  python benchmarks/gpu.py --wheels wheels --out /tmp/h200     # with packages that are missing
  python benchmarks/gpu.py --parts machine,ceilings --minutes 2
  python benchmarks/gpu.py --only "8b te"                      # cases with this in their name
  python benchmarks/gpu.py --device cpu --tiny --out /tmp/try  # every part, at sizes of a test
"""
_GPU = "import torch; torch.cuda.init()"
_GPU_SECONDS = 90.0  # for an import of torch from a cold disk, and the driver's start


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parts = "\n".join(f"  {name:<10} {what}" for name, what in plan.PARTS.items())
    made = Parser(description=__doc__, epilog=EXAMPLES.format(parts=parts))
    made.add_argument("--out", type=Path, default=Path("runs/gpu"), help="default: runs/gpu")
    made.add_argument("--minutes", type=_minutes, default=8.0, help="for all of it; default: 8")
    made.add_argument("--parts", type=_parts, default=tuple(plan.PARTS), help="default: all")
    made.add_argument("--only", default="", metavar="TEXT", help="cases with it in their name")
    made.add_argument("--wheels", type=Path, help="folder of wheels; missing packages are taken")
    made.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    made.add_argument("--tiny", action="store_true", help="sizes of a test, which measure nothing")
    made.add_argument(
        "--stand-in",
        action="store_true",
        help="Transformer Engine's kernels are those of tests/te; with --device cpu --tiny",
    )
    return made


def _minutes(text: str) -> float:
    if not 0 < (minutes := number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be above 0, and finite")
    return minutes


def _parts(text: str) -> tuple[str, ...]:
    """Those named, in the plan's order."""
    names = text.split(",")
    for name in names:
        if name not in plan.PARTS:
            raise argparse.ArgumentTypeError(f"no part {name!r}; valid: {', '.join(plan.PARTS)}")
    return tuple(name for name in plan.PARTS if name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen cases; 1 where one did not go well, a missed aim aside."""
    given = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and its children end with it
    with tempfile.TemporaryDirectory(prefix="gpu-") as temporary:
        try:
            return run(given, Path(temporary), multiprocessing.get_context("spawn"))
        except ConfigError as error:
            print(f"error: {shown(str(error))}", file=sys.stderr)
            return 2


def run(given: argparse.Namespace, temporary: Path, context: object) -> int:
    """As `main`, with a folder that goes away, and processes of multiprocessing's `context`."""
    begin = time.monotonic()
    cases = _cases(given)
    how = {name: getattr(given, name) for name in ("device", "tiny", "stand_in")}
    _provide(given, temporary)
    if given.device == "cuda" and (why := _no_gpu()):
        raise ConfigError(f"no GPU can be used ({why}); without one: --device cpu --tiny")
    record = Record.begun(given.out, how)
    options = Options(given.device, given.tiny, temporary, given.stand_in)
    seconds = 60 * given.minutes - (time.monotonic() - begin)

    def told(case: Case, known: dict) -> None:
        print(f"{time.monotonic() - begin:4.0f} s  {page.line(case, known)}", flush=True)

    runner = Runner(options, record, seconds, given.out / "gpu.log", context, told)
    with contextlib.suppress(KeyboardInterrupt):  # results so far are told all the same
        runner.run(cases)
    _conclude(record, given.out)
    good = (PASSED, LEFT_OUT, NOT_BEGUN)
    return int(any(record.of(case).get("status", NOT_BEGUN) not in good for case in cases))


def _cases(given: argparse.Namespace) -> list[Case]:
    """The chosen cases; ConfigError where there are none, or options do not go together."""
    if given.stand_in and given.device != "cpu":
        raise ConfigError("--stand-in is of --device cpu, and --device is cuda; add --device cpu")
    cases = plan.chosen(given.parts, given.only)
    if not cases:
        names = ", ".join(case.name for case in plan.cases(given.parts))
        raise ConfigError(f"--only {given.only!r} is in the name of no case; cases: {names}")
    return cases


def _no_gpu() -> str:
    """Why torch has no GPU here; "" where it has one, or nobody knows within the patience."""
    command = [sys.executable, "-c", _GPU]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GPU_SECONDS, text=True)
    except subprocess.TimeoutExpired:
        return ""  # cases tell it, each within a limit of its own
    lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    return lines[-1] if done.returncode else ""


def _provide(given: argparse.Namespace, temporary: Path) -> None:
    """Make packages and this checkout importable in all processes."""
    found = [*sys.path[:2]]
    if given.wheels:
        installed = wheels.provide(given.wheels, temporary / "site")
        print(
            f"of {shown(str(given.wheels))}: {', '.join(map(shown, installed)) or 'none missing'}"
        )
        found.append(str(temporary / "site"))
    wheels.pass_on(found)


def _conclude(record: Record, out: Path) -> None:
    """Aims into the record, tables to the terminal, the page into its file."""
    record.aims = aims(record.parts)
    record.write()
    console = tables.console()
    for title, rows in page.tables(record.parts, record.aims):
        words = {rows[0][0], rows[0][-1], "worst"}
        console.print(tables.table(rows, title, words & set(rows[0])))
    head = f"A GPU, checked and measured {time.strftime('%Y-%m-%d %H:%M')}"
    write_whole(out / "gpu.md", [page.markdown(record.parts, record.aims, head).encode()])
    console.print(plain(f"{out / 'gpu.md'}, {record.path}"))


if __name__ == "__main__":
    sys.exit(main())
