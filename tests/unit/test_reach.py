"""The amount of our own code that a reader meets from an entry point on, by following imports.

Counted are all lines, blank ones and comments too, of each file of this checkout (megatron_qwen3/
and, where it is imported, data_prep/) that an import statement leads to, wherever in a file it
stands, in a function too, with the `__init__.py` of each package on the way. Not counted: modules
imported for annotations alone (`if TYPE_CHECKING`), modules imported by a computed name,
as `train` does with a mode's module (which is given here beside it), libraries, and tests.

Whoever lowers a number writes the new limit here. Settings of every mode and their rules are met
from each one, since a file of settings may hold any; they, and the code of every model (as
attention of long texts, and Transformer Engine's layers and graphs with their rules), are the only
reasons to raise it.
"""

import ast
from pathlib import Path

import pytest

from megatron_qwen3 import train

ROOT = Path(__file__).resolve().parents[2]


def file_of(module):
    """The file of a module of this checkout; None where it is a library's, or no module."""
    path = ROOT.joinpath(*module.split("."))
    files = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in files if file.is_file()), None)


def imported(tree):
    """The modules that a file imports, wherever in it, if not for its annotations alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        else:
            yield from imported(node)


def reached(*modules):
    """Lines of each file that importing `modules` reaches, packages' own files among them."""
    lines, waiting = {}, [*modules]
    while waiting:
        name = waiting.pop()
        file = file_of(name)
        if file is None or file in lines:
            continue
        text = file.read_text(encoding="utf-8")
        lines[file] = len(text.splitlines())
        waiting += [*imported(ast.parse(text)), name.rpartition(".")[0]]
    return lines


@pytest.mark.parametrize(
    ("modules", "most"),
    [
        (("megatron_qwen3.training.engine",), 9600),
        (("megatron_qwen3.train", train.MODES["pretrain"]), 21200),
        (("megatron_qwen3.train", train.MODES["sft"]), 22100),
        (("megatron_qwen3.train", train.MODES["reward"]), 20300),
    ],
)
def test_a_reader_meets_few_lines_from(modules, most):
    lines = sum(reached(*modules).values())
    print(f"{modules} reach {lines:,} lines")
    assert lines < most, f"{modules} reach {lines:,} lines"


def test_the_planner_is_not_part_of_training():
    modules = ("megatron_qwen3.train", train.MODES["pretrain"])
    assert not [file for file in reached(*modules) if "planner" in file.parts]
