"""Trains: python -m megatron_qwen3.train STAGE.toml MODEL.toml [key=value …]

Reads the settings, checks everything that can be checked, joins the other ranks and runs the
loop of run.mode. To read one training step from here: pretrain/loop.py `run`, then
training/engine.py `train_step`, then model/layer.py.
"""

import contextlib
import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

from megatron_qwen3 import config as settings
from megatron_qwen3 import entry, launcher, validate_rope
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.processes import isolated
from megatron_qwen3.shown import shown_lines, shown_text
from megatron_qwen3.storage import folder, lock
from megatron_qwen3.training import failures
from megatron_qwen3.training.stop import CONTINUE

EXAMPLES = """\
examples:
  # one rank on this machine
  python -m megatron_qwen3.train examples/quickstart/stage_1_general.toml \\
      examples/models/tiny_moe.toml model.vocab_size=2048

  # eight ranks: two split each matrix, two the layers, two the experts, two the data
  torchrun --nproc-per-node 8 -m megatron_qwen3.train STAGE.toml MODEL.toml \\
      parallel.tensor=2 parallel.pipeline=2 parallel.expert=2

  # print the settings of a run, without running it
  python -m megatron_qwen3.train STAGE.toml MODEL.toml optim.lr=2e-4 --show

Later files and key=value pairs win. `python -m megatron_qwen3.config` lists every setting.
A run that was stopped goes on from its newest checkpoint when started again. SIGUSR1, SIGTERM,
SIGINT (Ctrl-C), SIGHUP and the time limit make it save and stop; a second signal of the last three,
5 s later or more, ends it at once, unsaved. A signal that was ignored when the run began, as SIGHUP
is under nohup, stays ignored. torchrun kills its ranks 30 s after it was told to stop: a save that
takes longer needs run.time_limit_minutes, or SIGUSR1 to the ranks themselves.

exit status:
  0   the last step is done and saved
  75  stopped on request and saved; start it again and it goes on. Under torchrun, which takes
      every other status for a failure, 0: ask with --finished
  70  nothing happened for guard.hang_seconds; start it again
  2   a setting or an input is wrong; starting again does not help
  1   anything else: stderr names the error, and mostly what to change; also where another run is
      at work in the folder
"""
# The loop of each mode, imported for the chosen one alone. Each has check(config), which gives its
# inputs or raises ConfigError before any rank starts, and run(config, layout, inputs).
MODES = {
    "pretrain": "megatron_qwen3.pretrain.loop",
    "sft": "megatron_qwen3.posttrain.sft",
    "reward": "megatron_qwen3.posttrain.reward",
    "rl": "megatron_qwen3.posttrain.rl",
    "distill": "megatron_qwen3.posttrain.on_policy",
}
# For the children of a killed run to end: torchrun gives its ranks 30 s, a hung one speaks first.
_PATIENCE_SECONDS = 60.0
_QUIET_SECONDS = 2.0  # of it
_PLANNER_SECONDS = 120.0  # for a search through all layouts, on a machine that others use, too


def main(arguments: list[str] | None = None, prog: str = "python -m megatron_qwen3.train") -> int:
    """The exit status, as EXIT_STATUSES says."""
    parser = Parser(prog=prog, description="Train a Qwen3 stage on megatron-core.", epilog=EXAMPLES)
    parser.add_argument("settings", nargs="+", metavar="FILE.toml | key=value")
    parser.add_argument("--show", action="store_true", help="print the settings and stop")
    parser.add_argument(
        "--finished",
        action="store_true",
        help="train nothing; status 0 if the run is done, else 75",
    )
    given = entry.parse(parser, arguments)
    try:
        config = settings.load(*settings.split(given.settings))
        if given.show:
            print(shown_text(settings.to_toml(config)))
            return 0
        if given.finished:
            return 0 if _is_finished(config) else CONTINUE
        finished = train(config)
    except lock.InUse as error:
        return _fail(f"stopped: {error}", status=1)
    except ConfigError as error:
        launcher.tell(f"error: {error}")
        return 2
    return 0 if finished or "TORCHELASTIC_RUN_ID" in os.environ else CONTINUE


def train(config: Config) -> bool:
    """Run on this rank: whether the run is done, or to be continued.

    Raises ConfigError, mostly before any communication, and SystemExit where the run had to stop.
    """
    launcher.check()
    if config.run.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if config.overlap.experts:
        # Two micro-batches, on streams of their own, and their messages.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    elif config.parallel.tensor > 1:
        # It overlaps with its communication only if kernels start in the order of their calls.
        # Others overlap better without.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if config.overlap.cuda_graphs:
        os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")  # as parallel/overlap.py checks
    if config.overlap.offload_parts:
        os.environ.setdefault("NVTE_CPU_OFFLOAD_V1", "1")  # as parallel/overlap.py checks
    warnings.filterwarnings("ignore", module=r"torch\.distributed|megatron\.core")
    # torch and megatron-core are imported only now: a wrong setting costs no seconds.
    from megatron_qwen3.cpu import memory
    from megatron_qwen3.model import specs
    from megatron_qwen3.parallel import runtime
    from megatron_qwen3.training.bad_batch import BadBatch
    from megatron_qwen3.training.run import EvaluationFailed
    from megatron_qwen3.training.saver import SaveFailed
    from megatron_qwen3.training.shared_folder import check_shared

    mode = importlib.import_module(MODES[config.run.mode])
    runtime.check(config)
    specs.kind(config)
    note = check_memory(config, launcher.world_size(), memory.of_rank(config))
    inputs = mode.check(config)
    if note:  # only now: a fault of the inputs may have stopped the planner, and is told once
        _fail(note, status=0)
    for line in validate_rope.notes(config.rope, config.data.sequence_length):
        _fail(f"note: {line}", status=0)
    with contextlib.ExitStack() as held:
        if launcher.rank() == 0:
            _own(config.run_dir, held)
        layout = runtime.start(config)
        try:
            check_shared(config.run_dir)
            if launcher.rank():
                held.enter_context(lock.shared(config.run_dir))
            finished = mode.run(config, layout, inputs)
        except (BadBatch, SaveFailed, EvaluationFailed) as error:
            sys.exit(_fail(f"stopped: {error}", status=1))
        except (MemoryError, RuntimeError, OSError) as error:
            if told := failures.explain(error, config):
                launcher.record(f"stopped: {told}")
                print(shown_lines(f"stopped: {told}"), file=sys.stderr)
                sys.exit(1)
            raise
        runtime.stop()
    return finished


def _own(run_dir: Path, held: contextlib.ExitStack) -> None:
    """Take the run folder for this run alone, while `held` is open. InUse: another run has it."""
    try:
        held.enter_context(lock.owned(run_dir, patience_seconds=_QUIET_SECONDS))
    except lock.InUse as error:
        waiting = f"waiting up to {_PATIENCE_SECONDS:g} s: {error}"
        print(shown_lines(waiting), file=sys.stderr, flush=True)
        held.enter_context(lock.owned(run_dir, patience_seconds=_PATIENCE_SECONDS))


def _is_finished(config: Config) -> bool:
    newest = folder.newest(config.run_dir)
    return newest is not None and folder.step_of(newest) >= config.steps


def check_memory(config: Config, world_size: int, device: tuple[str, float, bool]) -> str:
    """Report that the run will not fit, as run.memory_check asks; ConfigError where it refuses.

    Returns a note where the planner could not say whether it fits, else "".

    device: of this rank, as `memory.of_rank` gives it.
    """
    asked = config.run.memory_check
    if asked == "off" or (asked == "warn" and launcher.rank()):  # every rank refuses, one warns
        return ""
    fault, note = _ask_planner(config, world_size, device)
    if fault and asked == "refuse":
        raise ConfigError(f'{fault}; run.memory_check = "warn" only says so')
    if fault:
        _fail(f"warning: {fault}", status=0)
    return note and f'note: run.memory_check = "{asked}", but memory was not checked: {note}'


def _ask_planner(
    config: Config, world_size: int, device: tuple[str, float, bool]
) -> tuple[str, str]:
    """Why the run does not fit, or why the planner, a process of its own, gave no answer."""
    name, size, is_gpu = device
    command = [sys.executable, "-P", "-m", "megatron_qwen3.planner.launch_check"]
    command += [str(world_size), name, str(size), "gpu" if is_gpu else "cpu"]
    text = settings.to_toml(config).encode()
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, env=isolated(), timeout=_PLANNER_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    told, fault = (stream.decode(errors="replace").strip() for stream in (done.stderr, done.stdout))
    if done.returncode:
        return "", told.rpartition("\n")[2] or f"its process ended with status {done.returncode}"
    return fault, ""


def _fail(message: str, status: int) -> int:
    """Print the reason on one rank; every rank fails alike. status 0: it was a note."""
    if status:
        launcher.record(message)
    if os.environ.get("RANK", "0") == "0":  # which may be no number yet
        print(shown_lines(message), file=sys.stderr)
    return status


if __name__ == "__main__":
    entry.run(main)
