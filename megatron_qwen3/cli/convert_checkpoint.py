"""Convert between Hugging Face's Qwen3 and our checkpoints, and check both.

    mq3 convert from-hf  HF_FOLDER  OUT [--dtype bfloat16] [--dca]
    mq3 convert to-hf    CHECKPOINT OUT [--dtype …] [--tokenizer FOLDER]
                                                [--dca-length N] [rope.yarn_factor=4 …]
    mq3 convert verify   A B [--precision bf16]
    mq3 convert inspect  X

A checkpoint is a step's folder, or a run's, of which the newest step is taken. Conversions need no
GPU, no ranks and little memory, whatever the size of the model; OUT appears when it is complete.
from-hf's OUT goes into checkpoint.init_from. Without --dtype every bit stays; with it, every tensor
becomes bfloat16 or float32, rounded to the nearest, ties to even. verify computes logits of both
and exits with 1 where they differ by more than rounding. A reward model (run.mode = "reward") is
Qwen3ForSequenceClassification or Qwen3MoeForSequenceClassification there, with one label; its chat
template ends a conversation at the <|im_end|> where the reward is read.

YaRN stands in config.json, for transformers 4 and 5, as the checkpoint has it or as settings of
[rope] on the command line say: a model that was trained without it can be read with it. Dual Chunk
Attention does not: to-hf writes config_1m.json beside it for servers that know it (sglang; vLLM 0.9
and 0.10), and from-hf reads that file only with --dca. verify leaves it out where one of the two is
transformers'.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megatron_qwen3 import config as settings
from megatron_qwen3 import entry, validate_rope
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser, positive
from megatron_qwen3.config import ConfigError
from megatron_qwen3.hub import tokenizer_folder
from megatron_qwen3.settings_rope import RopeConfig
from megatron_qwen3.shown import shown, shown_text
from megatron_qwen3.toml import emit


@ending()
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 done, 1 the models differ, 2 something is wrong with a file or name."""
    given = entry.parse(_parser(prog), arguments)
    warnings.filterwarnings("ignore", module=r"torch|megatron")
    return int(given.run(given))


class _Command(NamedTuple):
    """folders: names of its arguments; example: of its line, after the program's name."""

    name: str
    run: Callable[[argparse.Namespace], int]
    add_options: Callable[[argparse.ArgumentParser], None]
    folders: tuple[str, ...]
    purpose: str
    example: str


def _parser(prog: str | None) -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, add_options, folders, purpose, example in _commands():
        command = commands.add_parser(
            name,
            help=purpose,
            description=f"{purpose}.",
            epilog=f"example:\n  mq3 convert {example}",
        )
        command.set_defaults(run=run)
        for folder in folders:
            command.add_argument(folder, type=Path)
        add_options(command)
    return parser


def _commands() -> list[_Command]:
    return [
        _Command(
            "from-hf",
            _from_hf,
            _add_from_hf,
            ("source", "out"),
            "a folder of Hugging Face's format becomes a checkpoint for checkpoint.init_from",
            "from-hf Qwen3-0.6B checkpoints/qwen3-0.6b",
        ),
        _Command(
            "to-hf",
            _to_hf,
            _add_to_hf,
            ("source", "out"),
            "a checkpoint, or a run's newest, becomes a folder of Hugging Face's format",
            "to-hf runs/quickstart/stage_3_long_context export/quickstart",
        ),
        _Command(
            "verify",
            _verify,
            _add_verify,
            ("a", "b"),
            "compare the logits of two models of either format; status 1 where they differ",
            "verify export/quickstart runs/quickstart/stage_3_long_context",
        ),
        _Command(
            "inspect",
            _inspect,
            lambda _: None,
            ("source",),
            "print the shape of a model of either format",
            "inspect runs/quickstart/stage_3_long_context",
        ),
    ]


def _add_conversion(command: argparse.ArgumentParser) -> None:
    """Options of both directions."""
    text = "threads; default: cores, at most 8"
    command.add_argument("--workers", type=positive, metavar="N", help=text)
    command.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="type of all tensors; default: as they are",
    )


def _add_from_hf(command: argparse.ArgumentParser) -> None:
    _add_conversion(command)
    command.add_argument(
        "--dca",
        action="store_true",
        help="with Dual Chunk Attention as config_1m.json has it; default: without",
    )


def _add_to_hf(command: argparse.ArgumentParser) -> None:
    _add_conversion(command)
    text = "of the tokenizer, or its name on Hugging Face's hub"
    command.add_argument("--tokenizer", metavar="FOLDER", help=text)
    command.add_argument(
        "--dca-length",
        type=positive,
        help="tokens that servers take by config_1m.json; default: 4 dca_chunk_size",
    )
    command.add_argument(
        "settings",
        nargs="*",
        metavar="rope.KEY=VALUE",
        help="how the folder's model reads long texts, in place of the checkpoint's",
    )


def _add_verify(command: argparse.ArgumentParser) -> None:
    command.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")


# torch is imported only where it is needed: a wrong command costs no seconds.
def _from_hf(given: argparse.Namespace) -> int:
    from megatron_qwen3.convert import stream

    stream.from_hf(given.source, given.out, given.workers, _dtype(given), given.dca)
    for line in _long_notes(given):
        print(shown(line))
    print(f"{shown(given.out)}: ready for checkpoint.init_from")
    return 0


def _long_notes(given: argparse.Namespace) -> list[str]:
    """Notes on Dual Chunk Attention: that it was left out, or that its factor is fixed."""
    from megatron_qwen3.convert.hf_config import has_dca

    if not given.dca:
        left_out = "Dual Chunk Attention is left out; --dca takes it"
        return [f"{name}: {left_out}" for name in has_dca(given.source)]
    rope = settings.load([given.out / "config.toml"]).rope
    if rope.dca_scale == 1:
        return []
    return [
        f"rope.dca_scale = {rope.dca_scale:.6g}, the length factor of the longest text for all "
        "texts; servers let it grow with a text"
    ]


def _to_hf(given: argparse.Namespace) -> int:
    from megatron_qwen3.convert import stream

    source = _step_folder(given.source)
    rope = _rope_of(source, given.settings)
    dca_length, line = _dca_length(rope, given.dca_length)
    has_tokenizer = stream.to_hf(
        source,
        given.out,
        given.tokenizer and tokenizer_folder(given.tokenizer, "--tokenizer"),
        given.workers,
        dtype=_dtype(given),
        rope=rope,
        dca_length=dca_length,
    )
    for told in (*_rope_notes(source, rope, given.settings), line):
        if told:
            print(shown(told))
    note = "" if has_tokenizer else " (without a tokenizer: its settings name none)"
    print(shown(f"{shown(given.out)}: {shown(source)} for transformers{note}"))
    return 0


def _rope_of(source: Path, pairs: list[str]) -> RopeConfig | None:
    """The checkpoint's table [rope] with the command line's values; None where it has none.

    Checked with the model alone: the settings of its training do not matter.
    """
    for pair in pairs:
        if not pair.startswith("rope."):
            raise ConfigError(
                f"command line: {pair} is no setting of [rope]; valid: rope.KEY=VALUE"
            )
    file = source / "config.toml"
    if not file.is_file():
        return None
    saved = settings.load([file])
    values = {f"model.{name}": value for name, value in vars(saved.model).items()}
    values |= {f"rope.{name}": value for name, value in vars(saved.rope).items()}
    mode = "reward" if saved.model.head == "scalar" else "pretrain"
    lines = [f"{name}={emit(value)}" for name, value in values.items()]
    return settings.load([], [*lines, f"run.mode={mode}", "train.steps=1", *pairs]).rope


def _rope_notes(source: Path, rope: RopeConfig | None, pairs: list[str]) -> list[str]:
    """Notes on settings of [rope] that are odd for a model that was trained as this one."""
    if rope is None:
        return []
    length = settings.load([source / "config.toml"]).data.sequence_length
    lines = [f"note: {line}" for line in validate_rope.notes(rope, length) if "yarn" in line]
    if pairs and rope.has_yarn and rope.yarn_original_length > length:
        lines.append(
            f"note: rope.yarn_original_length = {rope.yarn_original_length:,}, but its rows had "
            f"{length:,} positions: right if an earlier stage was trained with so many"
        )
    return lines


def _dca_length(rope: RopeConfig | None, asked: int | None) -> tuple[int, str]:
    """Tokens of config_1m.json, 0 where it is not to be written; and a note on it.

    If the command line asks for the file, it is written or the command fails. Otherwise a model
    that servers cannot run with it is written without it.
    """
    from megatron_qwen3.convert.hf_rope import LONG_FILE, dca_fault, original_of

    if rope is None or not (asked or rope.has_dca):
        return asked or 0, ""
    length = asked or 4 * rope.dca_chunk_size
    if fault := dca_fault(rope, length):
        return asked or 0, f"{LONG_FILE} is left out: {fault}"
    line = f"{LONG_FILE}: Dual Chunk Attention for {length:,} tokens, for servers"
    if original := original_of(rope.dca_scale, length):
        line += (
            f"; of its original_max_position_embeddings = {original:,} they make rope.dca_scale = "
            f"{rope.dca_scale:.6g} for the longest text, and less for shorter ones"
        )
    return length, line


def _dtype(given: argparse.Namespace) -> Any:
    """As torch names it."""
    import torch

    return getattr(torch, given.dtype) if given.dtype else None


def _verify(given: argparse.Namespace) -> int:
    from megatron_qwen3.convert import verify

    result = verify.compare(_step_folder(given.a), _step_folder(given.b), given.precision)
    if result.without_dca:
        print("Dual Chunk Attention is left out: transformers has none")
    if result.rope_changes:
        print(
            shown(
                f"[rope] differs: {', '.join(result.rope_changes)}; each is read with its own, and "
                "to-hf rope.KEY=VALUE exports a model with the other's"
            )
        )
    print(
        f"cosine similarity   {result.cosine:.9f} (worst position {result.worst_cosine:.9f})\n"
        f"largest difference  {result.largest_difference:.3g} (logits spread {result.spread:.3g})\n"
        f"greedy agreement    {result.greedy_agreement:.2%}\n"
        f"the models {'agree' if result.agree else 'DIFFER'} in {shown(given.precision)}"
    )
    return 0 if result.agree else 1


def _inspect(given: argparse.Namespace) -> int:
    from megatron_qwen3.convert.describe import describe

    print(shown_text(describe(_step_folder(given.source))))
    return 0


def _step_folder(path: Path) -> Path:
    """`path`, or the newest checkpoint of the run folder that it is."""
    steps = sorted((path / "checkpoints").glob("step_" + "[0-9]" * 8))
    return steps[-1] if steps else path
