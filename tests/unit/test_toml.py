"""Every TOML file that a person writes is read by one function, whose faults are one line each."""

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.clean import recipe as clean_recipe
from data_prep.mixing import recipe
from megatron_qwen3 import config
from megatron_qwen3.config import ConfigError
from megatron_qwen3.planner import hardware
from megatron_qwen3.studies import files, ladder, sweep
from megatron_qwen3.toml import as_kind, emit, parse_value, read_toml

ROOT = Path(__file__).resolve().parents[2]
READERS = {
    "settings": lambda path: config.load([path]),
    "a study": lambda path: files.read(path, sweep.Sweep),
    "a study of ladders": lambda path: files.read(path, ladder.Ladder),
    "a recipe": recipe.load,
    "a recipe of a cleaning": lambda path: clean_recipe.read(str(path), {}),
    "a cluster": lambda path: hardware.load(str(path)),
}
# For each the text of a file: a key that nobody knows, and a known one of a wrong type.
MISTAKES = {
    "settings": ("[optim]\nweigth_decay = 1", "weight_decay", '[optim]\nlr = "fast"', "optim.lr"),
    "a study": ("modells = 3", "models", "steps = 1.5", "steps"),
    "a study of ladders": ("modells = 3", "models", "models = 1", "models"),
    "a recipe": ("sead = 1", "seed", "[stages.a]\ntokens = true", "stages.a.tokens"),
    "a recipe of a cleaning": (
        "similarty = 1",
        "similarity",
        "[quality.prose]\nmin_letters = true",
        "quality.prose.min_letters",
    ),
    "a cluster": ("watt = 3", "watts", 'watts = "all"', "watts"),
}


def told(read, path):
    """The error for a file, which has to be one line that names it."""
    with pytest.raises(ConfigError) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text, text
    return text


@pytest.mark.parametrize("kind", READERS)
def test_every_reader_tells_every_fault_of_a_file_in_one_line(tmp_path, kind):
    path, read = tmp_path / "mine.toml", READERS[kind]
    wanted = f"should be a TOML file of {kind.removesuffix(' of ladders')}"
    for content, says in (
        (None, "cannot be read (No such file or directory)"),
        (b"\xff\xfe", "cannot be read (not UTF-8 text)"),
        (b"a = = 1", "not valid TOML: Invalid value (at line 1"),
        (b"{}", "not valid TOML"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"#" * ((1 << 24) + 1), "more than 16,777,216 bytes"),
    ):
        if content is not None:
            path.write_bytes(content)
        text = told(read, path)
        assert says in text and wanted in text, text
    (tmp_path / "folder.toml").mkdir()
    assert "cannot be read (Is a directory)" in told(read, tmp_path / "folder.toml")


@pytest.mark.parametrize("kind", READERS)
def test_every_reader_guesses_what_a_key_should_be_and_says_what_a_value_is_not(tmp_path, kind):
    path = tmp_path / "mine.toml"
    unknown, meant, wrong, name = MISTAKES[kind]
    path.write_text(unknown)
    assert "did you mean" in (text := told(READERS[kind], path)) and meant in text, text
    path.write_text(wrong)
    text = told(READERS[kind], path)
    assert f"{path}: {name}" in text and " is not a" in text, text


@dataclass(frozen=True)
class Part:
    size: int
    shares: Mapping[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    names: tuple[str, ...] = ()
    is_on: bool = False


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({}, "x.toml: parts is missing"),
        ({"parts": 3}, "x.toml: parts = 3 is not a list of tables"),
        ({"parts": [3]}, "x.toml: parts[0] = 3 is not a table of size, shares"),
        ({"parts": [{}]}, "x.toml: parts[0].size is missing"),
        ({"parts": [{"size": 1}, {"size": True}]}, "parts[1].size = true is not a whole number"),
        ({"parts": [{"size": 1.5}]}, "parts[0].size = 1.5 is not a whole number"),
        ({"parts": [{"size": math.inf}]}, "parts[0].size = inf is not a whole number"),
        ({"parts": [], "names": ["a", 2]}, "names[1] = 2 is not a string"),
        ({"parts": [], "is_on": 1}, "is_on = 1 is not true or false"),
        ({"parts": [{"size": 1, "shares": {"a": 1}}]}, "parts[0].shares.a = 1 is not a table"),
        (
            {"parts": [{"size": 1, "shares": {"a": {"b": "c"}}}]},
            'parts[0].shares.a.b = "c" is not a number',
        ),
        ({"prats": []}, "x.toml: prats is not known; did you mean parts?"),
        ({"q": 1}, "x.toml: q is not known; valid: parts, names, is_on"),
    ],
)
def test_faults_of_values_are_named_by_their_place(tree, says):
    with pytest.raises(ConfigError) as error:
        as_kind(tree, Whole, "x.toml")
    assert says in str(error.value)


def test_numbers_may_be_written_either_way():
    found = as_kind({"parts": [{"size": 3e12, "shares": {"a": {"b": 2}}}]}, Whole, "x.toml")
    assert found == Whole((Part(3_000_000_000_000, {"a": {"b": 2.0}}),))
    assert type(found.parts[0].size) is int and type(found.parts[0].shares["a"]["b"]) is float


VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
)


@given(VALUES)
def test_what_is_written_as_toml_is_read_as_it_was(value):
    assert parse_value(emit(value)) == value


@pytest.mark.parametrize("text", ["1\nother = 2", "", "[" * 100_000, "word"])
def test_a_value_of_the_command_line_is_one_value(text):
    with pytest.raises(ValueError):
        parse_value(text)


def test_a_file_that_does_not_end_is_not_read_to_the_end():
    if not Path("/dev/zero").exists():
        pytest.skip("no /dev/zero here")
    with pytest.raises(ConfigError, match="/dev/zero: more than"):
        read_toml("/dev/zero", "settings")


def test_nothing_else_reads_toml():
    for folder in ("megatron_qwen3", "data_prep", "tools", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            names = {
                alias.name
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in node.names
            } | {
                node.module
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.ImportFrom)
            }
            assert "tomllib" not in names or path.name == "toml.py", path
