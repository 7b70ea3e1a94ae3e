"""Talk with a model at the terminal: a checkpoint, a run or a folder of Hugging Face's format.

    mq3 chat Qwen3-0.6B
    mq3 chat runs/8b/post_3_fusion --thinking-budget 512 --system "You are terse."
    torchrun --nproc-per-node 8 -m megatron_qwen3 chat Qwen3-30B-A3B parallel.tensor=2 \\
        parallel.expert=4
    printf 'What is 17 * 23?\\n/no_think\\nAnd 17 * 24?\\n' | mq3 chat Qwen3-0.6B --seed 7

Answers come as they are written. Lines that begin with / command: /mode no_think, /budget 512,
/save talk.jsonl; /help has all. Sampling, where it is not given, is Qwen3's own for each mode.
"""

import argparse
from pathlib import Path

from megatron_qwen3 import entry, launcher
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.generate.__main__ import add_model, add_sampling, template_used
from megatron_qwen3.generate.conversation import Conversation
from megatron_qwen3.generate.load import tokenizer_of
from megatron_qwen3.generate.opening import checked, close, opened
from megatron_qwen3.generate.requests import both_modes
from megatron_qwen3.hub import tokenizer_folder


@ending()
def main(arguments: list[str] | None = None, prog: str = "mq3 chat") -> int:
    """The exit status: 0 the conversation has ended, 2 something that was given is wrong."""
    given = entry.parse(_parser(prog), arguments)
    run(given)
    return 0


def run(given: argparse.Namespace) -> None:
    """Check all arguments, load the model, and talk, on this rank."""
    source, config = checked(given.source, given.settings)
    history = given.history if launcher.rank() == 0 else None  # others may not see the file
    conversation = Conversation.begun(
        given.system, not given.no_think, given.thinking_budget, history
    )
    tokenizer = tokenizer_of(config)
    template = template_used(given.template, tokenizer_folder(config.data.tokenizer))
    encoders = both_modes(tokenizer, given, template)
    session = opened(source, config, tokenizer, encoders[True], given)
    from megatron_qwen3.generate.talk import talk

    talk(session, conversation, encoders)
    close()


def _parser(prog: str) -> Parser:
    parser = add_model(Parser(prog=prog, description=__doc__))
    text = "conversation that /save wrote, to go on with; --system replaces its system message"
    parser.add_argument("--history", type=Path, metavar="JSONL", help=text)
    add_sampling(parser)
    return parser
