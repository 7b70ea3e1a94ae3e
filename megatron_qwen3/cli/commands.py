"""Lists every command by name, and starts one.

    mq3 data clean --out runs/clean web=dumps/2024        # the script of setup.py: `start`
    python -m megatron_qwen3 data clean --out …           # the same
    python tools/clean_corpus.py run --out …              # from a checkout: `run`

A command's module is imported when it is called, so that help for all of them costs nothing. The
base install has neither torch nor the packages for corpora: a command that misses a package names
the extra of setup.py that has it.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from megatron_qwen3 import entry, launcher
from megatron_qwen3.shown import shown, shown_text
from megatron_qwen3.toml import did_you_mean


class Command(NamedTuple):
    """module: has `main(arguments, prog)`, which gives the exit status; prints_results: standard
    output is the command's result, so that losing it to a full disk is a failure;
    is_one_of_several: the last word of its name is one of the module's own commands."""

    module: str
    purpose: str
    prints_results: bool = False
    is_one_of_several: bool = False


def _study(purpose: str) -> Command:
    return Command("megatron_qwen3.cli.scaling_study", purpose, True, is_one_of_several=True)


COMMANDS = {
    "data clean": Command(
        "megatron_qwen3.cli.clean_corpus", "a corpus, to labelled documents", prints_results=True
    ),
    "data tokenizer": Command("megatron_qwen3.cli.train_tokenizer", "train one on documents"),
    "data tokenize": Command("megatron_qwen3.cli.tokenize_corpus", "documents to shuffled shards"),
    "data inspect": Command(
        "megatron_qwen3.cli.inspect_shards", "add up, read and verify shards", prints_results=True
    ),
    "data optimize": Command(
        "megatron_qwen3.cli.optimize_mixture",
        "the mixture of labels with the lowest loss, by small runs",
        prints_results=True,
    ),
    "data mix": Command(
        "megatron_qwen3.cli.mix_curriculum",
        "a curriculum from shards; find the text of a row again",
        prints_results=True,
    ),
    "data build": Command(
        "megatron_qwen3.cli.build_dialogs",
        "dialogs from queries: cold start, fusion, distill",
    ),
    "data dialogs": Command(
        "megatron_qwen3.cli.tokenize_dialogs", "tokenize dialogs and pairs into sets to train on"
    ),
    "plan": _study("the fastest layouts of a model on a cluster"),
    "memory": _study("a run's memory on each GPU"),
    "dry-run": _study("every rank's part of a run, without running it"),
    "launch": Command(
        "megatron_qwen3.cli.launch", "check runs and submit them to SLURM", prints_results=True
    ),
    "train": Command("megatron_qwen3.train", "a stage of training, on this rank"),
    "report": Command("megatron_qwen3.cli.report", "how a training went, as a page"),
    "generate": Command(
        "megatron_qwen3.generate.__main__", "text, one answer, files of prompts", True
    ),
    "chat": Command("megatron_qwen3.cli.chat", "a conversation with a model at the terminal", True),
    "evaluate": Command(
        "megatron_qwen3.cli.evaluate_model", "verified tasks, in both modes; a page"
    ),
    "score": Command(
        "megatron_qwen3.cli.score_answers", "answers, with a reward model", prints_results=True
    ),
    "read-long": Command(
        "megatron_qwen3.cli.read_long", "texts longer than were trained: loss, pass keys; a page"
    ),
    "convert": Command(
        "megatron_qwen3.cli.convert_checkpoint", "from and to Hugging Face's format; verify both"
    ),
    "checkpoint": Command(
        "megatron_qwen3.cli.checkpoint",
        "compare checkpoints with their checksums",
        prints_results=True,
    ),
    "config": Command(
        "megatron_qwen3.cli.config", "every setting, or those of a run", prints_results=True
    ),
    "tasks": Command(
        "megatron_qwen3.cli.tasks", "look at those that models are asked", prints_results=True
    ),
    "study sweep": _study("train a model at many sizes of batch and cluster; a page"),
    "study laws": _study("scaling laws from a ladder of small runs; a page"),
    "study validate": _study("compare the planner with published runs"),
    "study fit": _study("fit the planner to published runs"),
    "completion": Command(
        "megatron_qwen3.cli.completion", "code for a shell that completes all this", True
    ),
}
# Other words for commands, by which people may look for them.
_ELSEWHERE = {
    "build-dialogs": "data build",
    "curriculum": "data mix",
    "evaluate-model": "evaluate",
    "inspect-shards": "data inspect",
    "optimize-mixture": "data optimize",
    "score-answers": "score",
    "tokenize-dialogs": "data dialogs",
}
GROUPS = {"data": "raw text to training data", "study": "measure many runs"}
_WIDTH = max(map(len, COMMANDS))
HELP = """\
usage: mq3 COMMAND …

Train Qwen3 from raw text to an aligned model, on megatron-core. The commands, in the order in which
a training takes them:

{}

mq3 COMMAND --help shows the options of each, with examples:

    mq3 data clean --out runs/clean web=dumps/2024
    mq3 train examples/stages/pretrain_1_general.toml examples/models/tiny_dense.toml
"""
# Packages that the base install lacks, by the name they are imported by: setup.py's extras.
EXTRA_OF = {
    "torch": "train",
    "megatron": "train",
    "tensorboard": "train",
    "datatrove": "data",
    "fasttext": "data",
    "fastokens": "data",
    "orjson": "data",
    "pyarrow": "data",
    "pycld2": "data",
    "xxhash": "data",
    "zstandard": "data",
    "heliport": "languages",
    "ahocorasick": "urls",
    "fasteners": "urls",
    "tldextract": "urls",
    "onnxruntime": "onnx",
    "bm25s": "posttrain",
    "jsonschema": "posttrain",
    "math_verify": "posttrain",
    "lm_eval": "eval",
    "reasoning_gym": "eval",
    "sklearn": "mixture",
    "transformers": "verify",
    "nvidia": "dali",
    "wandb": "wandb",
}


def main(words: Sequence[str]) -> int:
    """Call the command that the first words name with the others; its exit status, 2 for none."""
    if "_ARGCOMPLETE" in os.environ:
        _complete_names()
    name, arguments = find(words)
    if name in COMMANDS:
        return _call(name, arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(shown_text(_help(name)), end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    return _unknown(name, arguments[0])


def find(words: Sequence[str]) -> tuple[str, list[str]]:
    """The command or group ("" is all) that the first words name, and the words after it."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if len(words) >= count and (name in COMMANDS or name in GROUPS):
            return name, list(words[count:])
    return "", list(words)


def _call(name: str, arguments: list[str]) -> int:
    command = COMMANDS[name]
    prog = f"mq3 {name}"
    if command.is_one_of_several:
        prog, _, own = prog.rpartition(" ")
        arguments = [own, *arguments]
    return installed(lambda: importlib.import_module(command.module).main(arguments, prog))


def installed(main: Callable[[], int]) -> int:
    """The status of `main`; 2 and one line where it misses a package that an extra has."""
    try:
        return main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        launcher.tell(
            f"error: this needs {package}, which is not installed: "
            f"pip install 'megatron_qwen3[{EXTRA_OF[package]}]'"
        )
        return 2


def _help(group: str) -> str:
    rows = [
        (n, row.purpose) for n, row in COMMANDS.items() if not group or n.startswith(f"{group} ")
    ]
    table = "\n".join(f"    {name:<{_WIDTH}}  {purpose}" for name, purpose in rows)
    if not group:
        return HELP.format(table)
    return (
        f"usage: mq3 {group} COMMAND …\n\n{GROUPS[group].capitalize()}. The commands:\n\n{table}\n"
    )


def _unknown(group: str, word: str) -> int:
    """Print the command that an unknown word may mean."""
    typed = f"{group} {word}".strip()
    lasts = {name.rpartition(" ")[2]: name for name in COMMANDS}
    meant = _ELSEWHERE.get(word) or lasts.get(word)
    known = [*COMMANDS, *GROUPS]
    guess = f"; did you mean {meant}?" if meant else did_you_mean(typed, known)
    if not guess and (near := did_you_mean(word, lasts)):
        guess = f"; did you mean {lasts[near.removeprefix('; did you mean ').rstrip('?')]}?"
    guess = guess or f"; valid: {', '.join(COMMANDS)}"
    print(shown(f"error: {typed} is no command of mq3{guess}"), file=sys.stderr)
    return 2


def _complete_names() -> None:
    """Answer a shell that asks how the words of the command line go on; where they name a command,
    its parser answers (`parser.py`)."""
    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    name, _ = find(line.split()[1:-1] if not line.endswith(" ") else line.split()[1:])
    if name not in COMMANDS:
        from megatron_qwen3.cli.completion import complete_names

        complete_names(COMMANDS)


def start() -> NoReturn:
    """`mq3`: call the command that the command line names, and exit."""
    words = sys.argv[1:]
    if "_ARGCOMPLETE" in os.environ:
        words = os.environ["COMP_LINE"].split()[1:]
    command = COMMANDS.get(find(words)[0])
    entry.run(lambda: main(words), prints_results=command is None or command.prints_results)


def run(name: str, caller: str) -> None:
    """Be the command `name` and exit, if `caller`, a module's __name__, means that it was started.

    Processes that a command starts import the file that it was started from under another name:
    there nothing happens.
    """
    if caller == "__main__":
        command = COMMANDS[name]
        module = command.module
        entry.run(
            lambda: installed(lambda: importlib.import_module(module).main(sys.argv[1:])),
            command.prints_results,
        )
