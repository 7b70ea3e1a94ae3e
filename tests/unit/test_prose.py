"""Docstrings and help are in plain English: a noun or a verb with its actor, and not "what".

Held are packages whose prose has been revised. "What it says" hides both the thing and the actor:
write "the number of rows", "`check` raises ConfigError".
"""

import ast
import re
from functools import cache
from itertools import chain
from pathlib import Path

from megatron_qwen3 import config
from megatron_qwen3.cli.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
REVISED = ("megatron_qwen3", "benchmarks", "containers")
MOST = 0.01  # times that a docstring says "what", on average
WHAT = re.compile(r"\bwhat\b", re.IGNORECASE)
INDIRECT = re.compile(r"(What|Whether|Which)\b")


@cache
def docstrings():
    """By module its docstrings, that of the module first, "" where it has none."""
    paths = (path for package in REVISED for path in sorted((ROOT / package).rglob("*.py")))
    names = {path.relative_to(ROOT).as_posix(): path for path in paths}
    return {
        name: docstrings_of(ast.parse(path.read_text(encoding="utf-8")))
        for name, path in names.items()
    }


def docstrings_of(node):
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    within = (docstrings_of(child) for child in node.body if isinstance(child, kinds))
    return [ast.get_docstring(node) or "", *chain.from_iterable(within)]


def test_modules_begin_with_the_thing_they_do_and_no_indirect_question():
    firsts = {name: texts[0] for name, texts in docstrings().items()}
    assert not {name: text[:80] for name, text in firsts.items() if INDIRECT.match(text)}


def test_docstrings_hardly_ever_say_what():
    texts = [(name, text) for name, texts in docstrings().items() for text in texts if text]
    said = [f"{name}: {text[:60]}" for name, text in texts for _ in WHAT.findall(text)]
    assert len(texts) > 3000
    assert len(said) <= MOST * len(texts), "\n".join(said)


def test_help_of_settings_and_commands_names_the_thing():
    purposes = {name: command.purpose for name, command in COMMANDS.items()}
    assert not {name: text for name, text in purposes.items() if WHAT.search(text)}
    assert not [line for line in config.describe().splitlines() if WHAT.search(line)]
