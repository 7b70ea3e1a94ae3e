"""Every command by name, and how one is started.

    mq3 clean run --out runs/clean web=dumps/2024     # what setup.py installs: `start`
    python -m megatron_qwen3 clean run …              # the same
    python tools/clean_corpus.py run …                # from a checkout: `run`

A command's module is imported when it is called, so that help for all of them costs nothing.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from megatron_qwen3 import entry
from megatron_qwen3.shown import shown, shown_text
from megatron_qwen3.toml import did_you_mean


class Command(NamedTuple):
    """module: has `main(arguments, prog)`, which gives the exit status; prints_results: standard
    output is what it is for, so that losing it to a full disk is a failure."""

    module: str
    purpose: str
    prints_results: bool = False


COMMANDS = {
    "clean": Command("megatron_qwen3.cli.clean_corpus", "a corpus, to labelled documents"),
    "tokenizer": Command("megatron_qwen3.cli.train_tokenizer", "train one on documents"),
    "tokenize": Command("megatron_qwen3.cli.tokenize_corpus", "documents to shuffled shards"),
    "tasks": Command(
        "megatron_qwen3.cli.tasks", "look at those that models are asked", prints_results=True
    ),
    "build-dialogs": Command(
        "megatron_qwen3.cli.build_dialogs", "make them from queries: cold start, fusion, distill"
    ),
    "tokenize-dialogs": Command(
        "megatron_qwen3.cli.tokenize_dialogs", "dialogs and pairs to sets to train on"
    ),
    "inspect-shards": Command(
        "megatron_qwen3.cli.inspect_shards", "add up, read and verify shards", prints_results=True
    ),
    "curriculum": Command(
        "megatron_qwen3.cli.mix_curriculum",
        "mix one from shards; find the text of a row again",
        prints_results=True,
    ),
    "config": Command(
        "megatron_qwen3.cli.config", "every setting, or those of a run", prints_results=True
    ),
    "train": Command("megatron_qwen3.train", "a stage of training, on this rank"),
    "launch": Command(
        "megatron_qwen3.cli.launch", "check runs and submit them to SLURM", prints_results=True
    ),
    "report": Command("megatron_qwen3.cli.report", "how a training went, as a page"),
    "checkpoint": Command(
        "megatron_qwen3.cli.checkpoint",
        "compare checkpoints with their checksums",
        prints_results=True,
    ),
    "convert": Command(
        "megatron_qwen3.cli.convert_checkpoint", "from and to Hugging Face's format; verify both"
    ),
    "generate": Command(
        "megatron_qwen3.generate.__main__", "text, chats, files of prompts", prints_results=True
    ),
    "score-answers": Command(
        "megatron_qwen3.cli.score_answers", "answers, with a reward model", prints_results=True
    ),
    "evaluate-model": Command(
        "megatron_qwen3.cli.evaluate_model", "verified tasks, in both modes; a page"
    ),
    "read-long": Command(
        "megatron_qwen3.cli.read_long", "texts longer than were trained: loss, pass keys; a page"
    ),
    "study": Command(
        "megatron_qwen3.cli.scaling_study",
        "plan, weigh and measure runs; scaling laws",
        prints_results=True,
    ),
}
_WIDTH = max(map(len, COMMANDS))
HELP = """\
usage: mq3 COMMAND …

Train Qwen3 from raw text to an aligned model, on megatron-core. The commands, in the order in which
a training takes them:

{}

mq3 COMMAND --help says what each takes, with examples:

    mq3 clean run --out runs/clean web=dumps/2024
    mq3 train examples/stages/pretrain_1_general.toml examples/models/tiny_dense.toml
""".format("\n".join(f"    {name:<{_WIDTH}}  {row.purpose}" for name, row in COMMANDS.items()))


def main(words: Sequence[str]) -> int:
    """Call the command that the first word names with the others; its exit status, 2 for none."""
    if not words or words[0] in ("-h", "--help"):
        print(shown_text(HELP), end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    name, *arguments = words
    if name not in COMMANDS:
        guess = did_you_mean(name, COMMANDS) or f"; valid: {', '.join(COMMANDS)}"
        print(shown(f"error: {name} is no command of mq3{guess}"), file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[name].module)
    status: int = module.main(arguments, f"mq3 {name}")
    return status


def start() -> NoReturn:
    """`mq3`: call what the command line names, and exit."""
    words = sys.argv[1:]
    command = COMMANDS.get(words[0]) if words else None
    entry.run(lambda: main(words), prints_results=command is None or command.prints_results)


def run(name: str, caller: str) -> None:
    """Be the command `name` and exit, where `caller`, a module's __name__, says it was started.

    Processes that a command starts import the file that it was started from under another name:
    there nothing happens.
    """
    if caller == "__main__":
        module, _, prints_results = COMMANDS[name]
        entry.run(lambda: importlib.import_module(module).main(sys.argv[1:]), prints_results)
