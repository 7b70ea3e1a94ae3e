"""Generates text: python -m megatron_qwen3.generate CHECKPOINT_OR_HF_FOLDER [--prompt … | --chat …]

Loads the weights in any layout, one rank by default, and prints text as it is generated, or writes
JSON lines. Arguments are checked before torch is imported.
"""

import argparse
import os
import sys
from pathlib import Path

from megatron_qwen3 import entry
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser, positive
from megatron_qwen3.config import ConfigError
from megatron_qwen3.generate.conversation import Conversation
from megatron_qwen3.generate.load import tokenizer_of
from megatron_qwen3.generate.opening import checked, close, opened
from megatron_qwen3.generate.requests import (
    SAMPLING_OPTIONS,
    Encoder,
    Line,
    both_modes,
    read_lines,
)
from megatron_qwen3.generate.template import FolderTemplate, template_of
from megatron_qwen3.hub import tokenizer_folder
from megatron_qwen3.shown import shown, shown_lines
from megatron_qwen3.storage.folder import check_file

EXAMPLES = """\
examples:
  # continue a text
  python -m megatron_qwen3.generate runs/quickstart/hf --prompt "The river " --seed 7

  # one question; without a text, a conversation at the terminal
  python -m megatron_qwen3.generate Qwen3-0.6B --chat "What is 17 * 23?" --thinking-budget 512
  python -m megatron_qwen3.generate Qwen3-0.6B --chat --no-think

  # a file of {"prompt": …} or {"messages": […]} lines, on eight ranks
  torchrun --nproc-per-node 8 -m megatron_qwen3.generate runs/sft --file prompts.jsonl \\
      --out answers.jsonl parallel.tensor=2 parallel.expert=4

Default sampling: in chat Qwen3's own (thinking: temperature 0.6, top-p 0.95,
top-k 20; without: 0.7, 0.8, 20 and presence penalty 1.5), else temperature 1 without cuts.
"""


@ending()
def main(
    arguments: list[str] | None = None, prog: str = "python -m megatron_qwen3.generate"
) -> int:
    """The exit status: 0 done, 2 a wrong argument."""
    given = entry.parse(_parser(prog), arguments)
    run(given)
    return 0


def run(given: argparse.Namespace) -> None:
    """Check and encode the arguments, load the model, and generate, on this rank."""
    _check_out(given)
    source, config = checked(given.source, given.settings)
    tokenizer = tokenizer_of(config)
    lines = _lines(given)
    talks = given.chat is not None or any("messages" in line for _, line in lines)
    folder = tokenizer_folder(config.data.tokenizer)
    template = template_used(given.template, folder) if talks else None
    encoder = Encoder(tokenizer, given, template)
    requests = encoder.encode_all(lines)
    session = opened(source, config, tokenizer, encoder, given)
    if given.file:
        session.file(requests, given.out)
    elif given.chat == "":
        from megatron_qwen3.generate.talk import talk

        budget = given.thinking_budget
        conversation = Conversation.begun(given.system, not given.no_think, budget)
        talk(session, conversation, both_modes(tokenizer, given, template))
    else:
        session.prompts(requests)
    close()


def template_used(asked: str, folder: Path) -> FolderTemplate | None:
    """The folder's chat template if it is asked for; prints a note where it differs and is not
    used."""
    if asked == "folder":
        if template := template_of(folder):
            return template
        raise ConfigError(f"--template folder: {folder} has no chat template; leave it out")
    if os.environ.get("RANK", "0") != "0":
        return None
    try:
        template = template_of(folder)
        how = "renders otherwise than" if template and template.differs() else ""
    except ConfigError as error:
        print(f"note: {shown_lines(error)}", file=sys.stderr)
        how = "could not be compared with"
    if how:
        print(
            shown(
                f"note: the chat template in {folder} {how} Qwen3's format, which is used; "
                "--template folder uses the template"
            ),
            file=sys.stderr,
        )
    return None


def _check_out(given: argparse.Namespace) -> None:
    """ConfigError where the result of a file could not be written."""
    if given.out and not given.file:
        raise ConfigError(f"--out {given.out} goes with --file")
    if given.out and os.environ.get("RANK", "0") == "0":
        check_file("--out", given.out)  # only the first rank writes, perhaps on its own disk


def _lines(given: argparse.Namespace) -> list[tuple[str, Line]]:
    """The given prompts, each with its place; a conversation at the terminal has none yet."""
    if given.file:
        return read_lines(given.file)
    if given.chat is not None:
        return [("--chat", {"messages": _messages(given)})] if given.chat else []
    return [("--prompt", {"prompt": text}) for text in given.prompt]


def _messages(given: argparse.Namespace) -> list[dict[str, str]]:
    texts = (("system", given.system), ("user", given.chat))
    return [{"role": role, "content": text} for role, text in texts if text]


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Generate text with a checkpoint or a folder of Hugging Face's format.",
        epilog=EXAMPLES,
    )
    what = add_model(parser).add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    what.add_argument(
        "--chat",
        nargs="?",
        const="",
        metavar="TEXT",
        help="without TEXT: a conversation, as in mq3 chat",
    )
    what.add_argument("--file", type=Path, metavar="JSONL")
    parser.add_argument("--out", type=Path, metavar="FILE", help="for --file; default: stdout")
    parser.add_argument(
        "--batch", type=positive, default=16, help="rows of --file at once, per data rank"
    )
    add_sampling(parser)
    return parser


def add_model(parser: Parser) -> Parser:
    """Add the arguments for the model and its layout."""
    parser.add_argument("source", type=Path, metavar="CHECKPOINT_OR_HF_FOLDER")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="such as parallel.tensor=2"
    )
    return parser


def add_sampling(parser: Parser) -> None:
    """Add the options for conversations, thinking and sampling."""
    parser.add_argument(
        "--template",
        choices=("qwen3", "folder"),
        default="qwen3",
        help="format of conversations: Qwen3's, whose control tokens no message can contain, or "
        "the tokenizer folder's own chat template",
    )
    parser.add_argument("--system", metavar="TEXT", help="system message of a conversation")
    thinking = parser.add_mutually_exclusive_group()
    thinking.add_argument("--think", action="store_true", help="the default")
    thinking.add_argument("--no-think", action="store_true", help="begin with an empty think block")
    parser.add_argument("--thinking-budget", type=int, metavar="N", help="most tokens of thinking")
    parser.add_argument("--max-new-tokens", type=positive, default=1024, metavar="N")
    for name in SAMPLING_OPTIONS:
        kind, metavar = (int, "N") if name == "top_k" else (float, "X")
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar)
    text = "of the draws; 0 by default"
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=text)


if __name__ == "__main__":
    entry.run(main, prints_results=True)
