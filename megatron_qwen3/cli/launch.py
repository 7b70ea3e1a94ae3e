"""Check a run against the machines it asks for, and submit it to SLURM.

    mq3 launch train STAGE.toml MODEL.toml [key=value …] --nodes 4 [--show]
    mq3 launch chain MODEL.toml [key=value …] --nodes 4 [--show]

It reports in a second the errors that a job would meet after an hour in the queue: a layout that
does not fit the nodes, tensor-parallel ranks that NVLink does not join, a state that no GPU holds,
a missing file, a time limit that comes before the first checkpoint. Call it in the checkout, as
jobs are, so that relative paths mean the same.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from megatron_qwen3 import config as settings
from megatron_qwen3 import entry
from megatron_qwen3.cli import grammar, launch_container, launch_sbatch
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.launch_sbatch import Submission
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.convert.hf_config import read_config
from megatron_qwen3.hub import tokenizer_folder
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.planner import allocation as planner
from megatron_qwen3.planner import hardware
from megatron_qwen3.planner.allocation import Allocation
from megatron_qwen3.posttrain.evaluation.tasks import open_source
from megatron_qwen3.posttrain.rows.dialog_mixture import DialogMixture
from megatron_qwen3.posttrain.rows.pair_mixture import PairMixture
from megatron_qwen3.posttrain.teachers import teacher_settings
from megatron_qwen3.pretrain import files, record
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.shown import counted, shown_lines, shown_text
from megatron_qwen3.storage import folder

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("pretrain_1_general", "pretrain_2_reasoning", "pretrain_3_long_context")
EXAMPLES = """\
examples:
  # four nodes of eight GPUs, in a partition, charged to an account
  mq3 launch train examples/stages/pretrain_1_general.toml \\
      examples/models/qwen3_8b.toml --nodes 4 --partition gpu --account lm --time 12:00:00

  # the three stages, each when the one before has ended well; the last in a layout of its own
  mq3 launch chain examples/models/qwen3_8b.toml --nodes 8 \\
      --stage examples/stages/pretrain_1_general.toml \\
      --stage examples/stages/pretrain_2_reasoning.toml \\
      --stage examples/stages/pretrain_3_long_context.toml examples/models/long/qwen3_8b.toml

  # reinforcement learning: six nodes of ranks and two of vLLM, which sample
  mq3 launch train examples/stages/post_2_reasoning_rl.toml \\
      examples/models/qwen3_8b.toml rollouts.engine=vllm \\
      rollouts.vllm.python=/opt/vllm/bin/python --nodes 8 --server-nodes 2

  # the commands alone, in a container
  mq3 launch train STAGE.toml MODEL.toml --nodes 2 --show \\
      --container /images/megatron_qwen3.sif
"""
_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
_GPUS_OF_A_NODE = 8  # at most, where NVLink ends at the node
_SPARSE = ("expert", "expert_tensor", "expert_data")  # sizes that a dense model has not


@ending()
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 submitted or shown, 2 something is wrong."""
    given = entry.parse(_parser(prog), arguments)
    runs, allocation = _runs(given), _allocation(given)
    given = launch_container.completed(given, [run.config for run in runs])
    if faults := list(_faults(runs, allocation, given)):
        raise ConfigError("\nerror: ".join(faults))
    for run in runs:
        print(shown_text(_summary(run.config, allocation)), file=sys.stderr)
    for note in launch_container.notes(given):
        print(shown_lines(f"note: {note}"), file=sys.stderr)
    (launch_sbatch.show if given.show else launch_sbatch.submit)(runs, given)
    return 0


def _parser(prog: str | None) -> Parser:
    text: dict[str, Any] = {"epilog": EXAMPLES}
    parser = Parser("train", prog=prog, description=__doc__, **text)
    commands = parser.add_subparsers(required=True, metavar="train | chain", dest="command")
    train = commands.add_parser("train", help="one stage", **text)
    train.add_argument("settings", nargs="+", metavar="FILE.toml | key=value")
    chain = commands.add_parser("chain", help="stages, one after the other", **text)
    chain.add_argument("settings", nargs="+", metavar="FILE.toml | key=value")
    chain.add_argument(
        "--stage",
        nargs="+",
        action="append",
        metavar=("FILE.toml", "FILE.toml | key=value"),
        help="a stage, and settings for it alone; default: the three of examples/stages",
    )
    for command in (train, chain):
        _add_options(command)
    return parser


def _add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--show", action="store_true", help="print the commands, submit nothing")
    add("--skip-files", action="store_true", help="data and checkpoints cannot be seen from here")
    add = command.add_argument_group("resources of the job").add_argument
    add("--nodes", type=_count, required=True)
    add("--gpus-per-node", type=_count, default=8, help="also the ranks of a node; default 8")
    add("--server-nodes", type=_count_or_none, help="of them for servers of vLLM; default 0")
    add("--node-servers", type=_count, help="servers of each of these, its GPUs shared; default 1")
    add(
        "--time",
        default="24:00:00",
        metavar="TIME",
        help="limit as SLURM writes it; default 24:00:00",
    )
    add("--save-seconds", type=_count, default=600, help="when it saves, before the limit; 600")
    add("--partition", metavar="PARTITION")
    add("--account")
    add("--qos")
    add("--cpus-per-task", type=_count, help="cores of a rank; default 8")
    add("--gres", help="replaces --gpus-per-node for SLURM: gpu:h100:8; none asks for no GPUs")
    add("--after", type=_count, help="number of a job that must have ended well before")
    add(
        "--sbatch",
        action="append",
        type=grammar.sbatch_option,
        default=[],
        metavar="OPTION=VALUE",
        help="any other option of sbatch's: constraint=a100",
    )
    add(
        "--nvlink-domain",
        type=_count,
        help="GPUs that NVLink joins; default: a node's, or a rack's",
    )
    add("--gpu", default="h100", help="planner/hardware/NAME.toml or your own file; default h100")
    add = command.add_argument_group("environment of the job").add_argument
    add("--setup", help="a shell file of the site, sourced first: module load, NCCL_IB_HCA=")
    add("--venv", help="virtual environment; default: .venv of the checkout")
    add("--container", help="image that is used instead: a .sif or .sqsh file, docker://…")
    add("--runtime", choices=launch_container.RUNTIMES, help="its program; default: by its name")
    add("--mounts", help="folders that it sees besides those of the runs: /home/me/hub:/hub")
    add("--restarts", type=_count_or_none, help="when a rank dies, in one allocation; default 3")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _runs(given: argparse.Namespace) -> list[Submission]:
    if given.command == "train":
        return [_run(given.settings)]
    stages = given.stage or [[f"examples/stages/{name}.toml"] for name in STAGES]
    return [_run([first, *given.settings, *own]) for first, *own in stages]


def _run(arguments: Sequence[str]) -> Submission:
    return Submission(tuple(arguments), settings.load(*settings.split(arguments)))


def _allocation(given: argparse.Namespace) -> Allocation:
    gpu = None if given.gres == "none" else hardware.load(given.gpu)
    domain = given.gpus_per_node
    if gpu and gpu.nvlink_domain > _GPUS_OF_A_NODE:
        domain = gpu.nvlink_domain  # a rack's
    return Allocation(
        nodes=given.nodes,
        gpus_per_node=given.gpus_per_node,
        nvlink_domain=given.nvlink_domain or domain,
        gpu=gpu,
        time_limit_seconds=launch_sbatch.parse_time(given.time),
        save_seconds=given.save_seconds,
        server_nodes=given.server_nodes or 0,
        node_servers=given.node_servers or 1,
    )


def _faults(
    runs: list[Submission], allocation: Allocation, given: argparse.Namespace
) -> Iterator[str]:
    if not (ROOT / launch_sbatch.TRAIN).is_file():
        yield f"jobs are started by {launch_sbatch.TRAIN} of a checkout, and {ROOT} is none"
    elif Path.cwd() != ROOT:
        yield f"call it in {ROOT}: jobs run there, and relative paths must mean the same"
    for path in (given.setup, given.venv and f"{given.venv}/bin/python"):
        if path and not Path(path).is_file():
            yield f"{path} is no file"
    yield from launch_container.faults(given, looks_at_files=not given.skip_files)
    fixed = launch_sbatch.options(runs[0], given)
    for word in given.sbatch:
        if (name := word.lstrip("-").partition("=")[0]) in fixed:
            yield f"--sbatch={word} is not checked; --{name} is an option of launch.py or set by it"
    configs = [run.config for run in runs]
    for config in configs:
        found = (*planner.faults(config, allocation), *_memory_faults(config))
        yield from (f"{config.run.name}: {fault}" for fault in found)
    for before, config in pairwise(configs):
        if not _follows(config, before):
            yield (
                f'{config.run.name}: checkpoint.init_from = "{config.checkpoint.init_from}" is not '
                f"the folder of the stage before it, {before.run_dir}"
            )
    if not given.skip_files:
        for earlier, config in zip([None, *configs], configs, strict=False):
            comes_from_here = earlier is not None and _follows(config, earlier)
            for error in _file_errors(config, comes_from_here):
                yield f"{config.run.name}: {error}"
            if fault := _teacher_fault(config, allocation):
                yield f"{config.run.name}: {fault}"


def _memory_faults(config: Config) -> Iterator[str]:
    """Settings that a job's GPUs refuse: its script lets memory grow, unless the environment
    forbids."""
    given = os.environ.get(_ALLOCATOR, "")
    if config.overlap.nccl_buffers and (not given or "expandable_segments:True" in given):
        yield (
            "overlap.nccl_buffers = true, and memory that grows, as jobs have it, is none of "
            f"NCCL's; export {_ALLOCATOR}=expandable_segments:False before, or leave it out"
        )


def _follows(config: Config, before: Config) -> bool:
    start = config.checkpoint.init_from
    return bool(start) and Path(start).resolve() == before.run_dir.resolve()


def _file_errors(config: Config, has_start: bool) -> Iterator[ConfigError]:
    """Faults of the run's folder, of its data and of the checkpoint that it starts from."""
    try:
        folder.check_writable(config.run_dir)
    except ConfigError as error:
        yield error
        return
    try:
        CHECKS_OF_DATA[config.run.mode](config)
    except ConfigError as error:
        yield error
    try:
        if config.data.tokenizer:
            tokenizer_folder(config.data.tokenizer)
    except ConfigError as error:
        yield error
    models = {name: path for name, path in _models(config).items() if path}
    if has_start:
        del models["checkpoint.init_from"]
    for name, path in models.items():
        try:
            if folder.is_hf(Path(path)):
                read_config(Path(path))
            else:
                folder.find(path)
        except ConfigError as error:
            yield error if name == "checkpoint.init_from" else ConfigError(f"{name}: {error}")


def _models(config: Config) -> dict[str, str]:
    """The models that a run reads, by the settings that name them."""
    models = {"checkpoint.init_from": config.checkpoint.init_from}
    if config.run.mode == "rl":
        models |= {
            "rl.kl.reference": config.rl.kl.reference,
            "rl.judge.model": config.rl.judge.model,
        }
    if config.run.mode == "distill":
        models["distill.teacher.path"] = config.distill.teacher.path
    return models


def _teacher_fault(config: Config, allocation: Allocation) -> str:
    """Why a teacher in memory does not fit the ranks; "" where it does, or there is none."""
    paths = {"sft": config.sft.teacher.path, "distill": config.distill.teacher.path}
    if not paths.get(config.run.mode):
        return ""
    try:
        world_size = allocation.world_size
        Layout.of(teacher_settings.settings_of(config, world_size), world_size)
    except ConfigError as error:
        return teacher_settings.named(teacher_settings.table_of(config)[0], error)
    return ""


def _check_sources(config: Config) -> None:
    files.check(Mixture(record.prepare(config, step=0).parts[-1]).files)


def _check_tasks(config: Config) -> None:
    for source in config.rollouts.tasks:
        open_source(source.path, source.name)


# Checks of the training data of a mode: ConfigError where it is missing, or not fit for the mode.
CHECKS_OF_DATA: dict[str, Callable[[Config], object]] = {
    "pretrain": _check_sources,
    "sft": DialogMixture,
    "reward": PairMixture,
    "rl": _check_tasks,
    "distill": _check_tasks,
}


def _work(config: Config, layout: Layout) -> str:
    """The amount of work, in words."""
    if updates := config.batch_updates:
        asked, batches = config.rollouts, -(-config.steps // updates)
        return (
            f"{config.steps:,} updates, {updates} on each of {batches:,} batches of "
            f"{asked.prompts:,} x {asked.samples:,} answers"
        )
    return (
        f"{config.steps:,} steps of {config.step_tokens:,} tokens, "
        f"{layout.micro_batches} micro-batches"
    )


def _summary(config: Config, allocation: Allocation) -> str:
    """A summary of the job, in a few lines."""
    layout = Layout.of(config, allocation.world_size)
    sizes = {name: size for name, size in layout.counts().items() if size > 1}
    for name in ("world_size", "micro_batches", *(() if config.model.num_experts else _SPARSE)):
        sizes.pop(name, None)
    state = planner.state_bytes(config, allocation.world_size) / 1e9
    lines = [
        f"{config.run_dir}: {counted(allocation.rank_nodes, 'node')} x "
        f"{counted(allocation.gpus_per_node, 'GPU')}, "
        + (", ".join(f"{name} {size}" for name, size in sizes.items()) or "one rank"),
        f"  {_work(config, layout)}; weights, gradients and optimizer {state:.1f} GB per GPU",
    ]
    if servers := allocation.server_nodes * allocation.node_servers:
        more = counted(allocation.server_nodes, "more node")
        lines.append(f"  {counted(servers, 'server')} of vLLM on {more}")
    if seconds := planner.step_seconds(config, allocation):
        days = seconds * config.steps / 86400
        lines.append(f"  about {seconds:,.1f} s a step, {days:,.1f} days in all, says the planner")
    if saved := folder.newest(config.run_dir):
        lines.append(f"  goes on from {saved}")
    return "\n".join([*lines, *(f"  note: {text}" for text in planner.advice(config, allocation))])
