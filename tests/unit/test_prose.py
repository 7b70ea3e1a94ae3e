"""Docstrings and help are in plain English: a noun or a verb with its actor, and not "what".

Held are packages whose prose has been revised. "What it says" hides both the thing and the actor:
write "the number of rows", "`check` raises ConfigError".
"""

import ast
import re
from pathlib import Path

from megatron_qwen3 import config
from megatron_qwen3.cli.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
REVISED = ("megatron_qwen3", "benchmarks", "containers")
BEING_MADE = ("megatron_qwen3/studies/mixture", "megatron_qwen3/pages/mixture")
MOST = 0.01  # times that a docstring says "what", on average
WHAT = re.compile(r"\bwhat\b", re.IGNORECASE)
INDIRECT = re.compile(r"(What|Whether|Which)\b")


def modules():
    for package in REVISED:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(BEING_MADE):
                yield name, ast.parse(path.read_text(encoding="utf-8"))


def docstrings(tree):
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in found if text]


def test_modules_begin_with_the_thing_they_do_and_no_indirect_question():
    firsts = {name: ast.get_docstring(tree) or "" for name, tree in modules()}
    assert not {name: text[:80] for name, text in firsts.items() if INDIRECT.match(text)}


def test_docstrings_hardly_ever_say_what():
    texts = [(name, text) for name, tree in modules() for text in docstrings(tree)]
    said = [f"{name}: {text[:60]}" for name, text in texts for _ in WHAT.findall(text)]
    assert len(texts) > 3000
    assert len(said) <= MOST * len(texts), "\n".join(said)


def test_help_of_settings_and_commands_names_the_thing():
    purposes = {name: command.purpose for name, command in COMMANDS.items()}
    assert not {name: text for name, text in purposes.items() if WHAT.search(text)}
    assert not [line for line in config.describe().splitlines() if WHAT.search(line)]
