"""Every command has one name, one module and one help, whichever way it is called."""

import argparse
import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

from megatron_qwen3 import entry
from megatron_qwen3.cli import commands
from megatron_qwen3.cli.commands import COMMANDS
from megatron_qwen3.cli.parser import Parser

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))


def call(*words, cwd=ROOT):
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def lines_of_code(path):
    """Lines that are neither empty, comments nor the module's docstring."""
    source = path.read_text(encoding="utf-8")
    (docstring, *_) = ast.parse(source).body
    rest = source.splitlines()[docstring.end_lineno :]
    return [line for line in rest if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("name", TOOLS)
def test_a_file_of_tools_has_at_most_five_lines_that_call_the_package(name):
    lines = lines_of_code(ROOT / "tools" / name)
    assert len(lines) <= 5 and lines[-1].startswith("run("), lines


def test_tools_hold_nothing_else_and_each_calls_the_module_of_its_name():
    others = {path.name for path in (ROOT / "tools").iterdir()} - {*TOOLS, "__pycache__"}
    assert not others
    for name in TOOLS:
        tree = ast.parse((ROOT / "tools" / name).read_text(encoding="utf-8")).body[-1]
        assert isinstance(tree, ast.Expr) and isinstance(tree.value, ast.Call)
        command = ast.literal_eval(tree.value.args[0])
        assert COMMANDS[command].module == f"megatron_qwen3.cli.{name.removesuffix('.py')}"


@pytest.mark.parametrize("name", TOOLS)
def test_help_of_a_file_of_tools_has_an_example(name):
    done = call(f"tools/{name}", "--help")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.startswith(f"usage: {name} [-h]")
    assert " mq3 " in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_of_mq3_has_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main([*name.split(), "--help"])
    told = capsys.readouterr().out
    assert not stop.value.code and told.startswith(f"usage: mq3 {name} ")
    way = f"python -m megatron_qwen3.{name}" if name in ("train", "generate") else f"mq3 {name}"
    assert f"\n  {way} " in told or f"\n    {way} " in told or f": {way} " in told
    assert "tools/" not in told.replace("data/", "")


def test_help_for_all_commands_names_each_and_imports_none_of_them():
    program = """
import sys
from megatron_qwen3.cli import commands
assert commands.main(["--help"]) == 0
heavy = {"torch", "rich", "numpy", "matplotlib"} | {c.module for c in commands.COMMANDS.values()}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = call("-c", program)
    assert done.returncode == 0, done.stderr
    assert all(f"\n    {name} " in done.stdout for name in COMMANDS)


def test_no_module_of_commands_imports_torch_before_it_is_called():
    modules = [command.module for command in COMMANDS.values()]
    program = "import importlib, sys\n"
    program += f"for name in {modules}: importlib.import_module(name)\n"
    program += "sys.exit('torch' in sys.modules)"
    assert call("-c", program).returncode == 0


def test_a_command_that_is_none_gets_the_nearest_and_status_2(capsys):
    for words, meant in {
        "data tokenise": "data tokenize",
        "tokenise x": "data tokenize",
        "clean run": "data clean",
        "curriculum mix": "data mix",
        "study plan": "plan",
        "evalaute": "evaluate",
    }.items():
        assert commands.main(words.split()) == 2
        assert f" is no command of mq3; did you mean {meant}?" in capsys.readouterr().err
    assert commands.main(["x\x1b[2J"]) == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told and all(name in told for name in COMMANDS)
    assert commands.main([]) == 2


def test_a_group_lists_its_commands_alone(capsys):
    assert commands.main(["data", "--help"]) == 0
    told = capsys.readouterr().out
    for name in COMMANDS:
        assert (f"\n    {name} " in told) == name.startswith("data "), name
    assert commands.main(["study"]) == 2 and "study sweep" in capsys.readouterr().err


def test_planning_needs_neither_torch_nor_matplotlib_nor_scipy_to_start():
    program = """
import sys
from megatron_qwen3.cli import commands
try:
    commands.main(["plan", "--help"])
except SystemExit as stop:
    heavy = {"torch", "matplotlib", "scipy", "numpy", "jinja2", "argcomplete"} & {*sys.modules}
    sys.exit(stop.code or ", ".join(heavy) or None)
"""
    done = call("-c", program)
    assert done.returncode == 0, done.stderr


# Packages that the base install lacks: the extras of setup.py, by the names that are imported.
WITHOUT = """
import sys
from megatron_qwen3.cli import commands

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in commands.EXTRA_OF:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for name in commands.COMMANDS:
    try:
        status = commands.main([*name.split(), "--help"])
    except SystemExit as stop:
        status = stop.code
    print(name, status, file=sys.stderr)
"""


def test_a_base_install_helps_with_every_command_and_plans_launches_and_reports():
    done = call("-c", WITHOUT)
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert [line for line in told if not line.endswith(" 0")] == []
    assert len(told) == len(COMMANDS)


def test_a_command_whose_extra_is_missing_says_which(capsys):
    def missing():
        raise ModuleNotFoundError("No module named 'megatron'", name="megatron.core")

    assert commands.installed(missing) == 2
    told = capsys.readouterr().err
    assert told == (
        "error: this needs megatron, which is not installed: pip install 'megatron_qwen3[train]'\n"
    )
    for name in ("megatron_qwen3.nothing", None):

        def broken(name=name):
            raise ModuleNotFoundError("a fault of ours", name=name)

        with pytest.raises(ModuleNotFoundError):
            commands.installed(broken)


def setup_keywords():
    """The arguments of setup.py's setup(), as source."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body[-1]
    assert isinstance(tree, ast.Expr) and isinstance(tree.value, ast.Call)
    return {keyword.arg: keyword.value for keyword in tree.value.keywords}


def test_each_package_that_has_an_extra_is_in_it_and_not_in_the_base():
    told = setup_keywords()
    base, extras = ast.literal_eval(told["install_requires"]), told["extras_require"]
    extras = ast.literal_eval(extras)
    own = {
        "megatron": "megatron-core",
        "fasttext": "fasttext-predict",
        "nvidia": "nvidia-dali",
        "sklearn": "scikit-learn",
        "ahocorasick": "pyahocorasick",
    }
    for package, extra in commands.EXTRA_OF.items():
        name = own.get(package, package).replace("_", "-")
        assert any(one.startswith(name) for one in extras[extra]), package
        assert not any(one.startswith(name) for one in base), package
    assert {"train", "data", "eval", "docs", "languages"} <= {*extras}


def completed(line, tmp_path):
    """The answer to the shell where TAB is typed after `line`."""
    answer = tmp_path / "answer"
    environment = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }
    done = subprocess.run(
        [sys.executable, "-m", "megatron_qwen3"], cwd=ROOT, env=os.environ | environment, timeout=60
    )
    assert done.returncode == 0
    return {word.strip() for word in answer.read_text().split("\n") if word.strip()}


@pytest.mark.parametrize(
    ("line", "expected", "others"),
    [
        ("mq3 ", {"data", "study", "train", "plan"}, {"clean", "--out"}),
        ("mq3 da", {"data"}, {"train"}),
        ("mq3 data to", {"tokenizer", "tokenize"}, {"clean"}),
        ("mq3 data clean run --keep-u", {"--keep-undetermined"}, {"--help"}),
        ("mq3 data mix shards/ --rec", {"--recipe"}, {"--help"}),
        ("mq3 plan --mo", {"--model"}, {"--gpu"}),
        ("mq3 study sweep x.toml --lo", {"--local"}, set()),
        ("mq3 convert ", {"to-hf", "from-hf", "verify", "inspect"}, set()),
    ],
)
def test_a_shell_is_answered_from_the_table_and_the_parsers(line, expected, others, tmp_path):
    found = completed(line, tmp_path)
    assert expected <= found and not others & found, found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_each_shell_is_printed(shell, capsys):
    assert commands.main(["completion", shell]) == 0
    assert "mq3" in capsys.readouterr().out


def test_the_usual_one_of_a_commands_own_may_be_left_out(tmp_path, capsys):
    for words in (["data", "inspect", str(tmp_path)], ["data", "inspect", "table", str(tmp_path)]):
        assert commands.main(words) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"error: {tmp_path}"), told
    with pytest.raises(SystemExit):
        commands.main(["data", "inspect", "tabel", str(tmp_path)])
    assert "invalid choice: 'tabel'" in capsys.readouterr().err


def test_both_ways_to_call_a_command_give_the_same_output_and_status(tmp_path):
    for words, status in ((["table", "none"], 2), (["table", "--by", "colour", "x"], 2)):
        by_name = call("-m", "megatron_qwen3", "data", "inspect", *words)
        by_file = call("tools/inspect_shards.py", *words)
        assert by_name.returncode == by_file.returncode == status
        told = by_file.stderr.replace("inspect_shards.py", "mq3 data inspect")
        assert by_name.stderr.split() == told.split()


def test_settings_of_a_run_are_those_that_it_would_be_trained_with(capsys):
    words = ["model.preset=tiny-dense", "train.steps=3", "optim.lr=0.25"]
    assert commands.main(["config", *words]) == 0
    settings = capsys.readouterr().out
    assert commands.main(["train", *words, "--show"]) == 0
    assert capsys.readouterr().out == settings and "lr = 0.25" in settings
    assert commands.main(["config"]) == 0
    assert "[optim]" in capsys.readouterr().out
    assert commands.main(["config", "optim.weigth_decay=1"]) == 2
    assert "did you mean optim.weight_decay?" in capsys.readouterr().err


def test_settings_of_a_run_are_read_from_its_folder(tmp_path, capsys):
    words = ["model.preset=tiny-dense", "train.steps=3", "optim.lr=0.25"]
    assert commands.main(["config", *words]) == 0
    settings = capsys.readouterr().out
    (tmp_path / "config.toml").write_text(settings)
    assert commands.main(["config", str(tmp_path)]) == 0
    assert capsys.readouterr().out == settings
    assert commands.main(["config", str(tmp_path.parent)]) == 2


def imports(path):
    """Full names of the modules that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{alias.name}" for alias in names)


def test_what_is_installed_has_every_package_and_file_and_the_command():
    """The package list of setup.py; a wheel is made of that."""
    told = {name: ast.unparse(value) for name, value in setup_keywords().items()}
    target = ast.literal_eval(told["entry_points"])["console_scripts"][0]
    assert target == f"mq3 = {commands.__name__}:{commands.start.__name__}"
    include = ast.literal_eval(told["packages"].partition("include=")[2].rstrip(")"))
    packages = {name.replace(".", "/") for name in find_packages(str(ROOT), include=include)}
    for package, patterns in ast.literal_eval(told["package_data"]).items():
        told[package] = {path for one in patterns for path in (ROOT / package).glob(one)}
        assert all(any((ROOT / package).glob(one)) for one in patterns)
    assert all((ROOT / name).is_file() for name in ("LICENSE", "CITATION.cff", "CHANGELOG.md"))
    assert all(ROOT / top / "py.typed" in told[top] for top in ("megatron_qwen3", "data_prep"))
    for path in (
        path for top in ("megatron_qwen3", "data_prep") for path in (ROOT / top).rglob("*")
    ):
        if path.suffix == ".py":
            assert str(path.parent.relative_to(ROOT)) in packages, path
        elif path.suffix in (".toml", ".html", ".css", ".jinja", ".csv", ".npz"):
            assert path in told[path.relative_to(ROOT).parts[0]], path


def test_nothing_below_imports_command_lines_or_pages():
    above = ("megatron_qwen3.cli.", "megatron_qwen3.pages.", "tools.", "examples.")
    allowed = {ROOT / "megatron_qwen3/__main__.py"}
    for path in [*ROOT.glob("megatron_qwen3/**/*.py"), *ROOT.glob("data_prep/**/*.py")]:
        if path.parts[len(ROOT.parts) + 1] in ("cli", "pages") or path in allowed:
            continue
        found = [
            name for name in imports(path) if f"{name}.".startswith(tuple(f"{a}." for a in above))
        ]
        assert not found, f"{path} imports {found}"
    for path in ROOT.glob("megatron_qwen3/pages/*.py"):
        assert not [name for name in imports(path) if name.startswith("megatron_qwen3.cli")], path


class Caught(Exception):
    """A parser, and whether it was handed to entry.parse."""


def parsers_of(name, monkeypatch):
    """(words before it, parser) of a command and its own commands; is everything entry.parse's?"""

    def catch(is_entry):
        def parse(parser, *_):
            raise Caught(parser, is_entry)

        return parse

    monkeypatch.setattr(entry, "parse", catch(True))
    monkeypatch.setattr(Parser, "parse_args", catch(False))
    with pytest.raises(Caught) as caught:
        commands.main(name.split())
    monkeypatch.undo()
    parser, is_entry = caught.value.args
    return list(nested([], parser)), is_entry


def nested(words, parser):
    found = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not found:
        yield words, parser
    for action in found:
        for name, inner in action.choices.items():
            yield from nested([*words, name], inner)


def word_for(action):
    """A value that an argument takes."""
    if action.choices:
        return str(next(iter(action.choices)))
    for text in ("1", "dca", "x.png"):
        try:
            action.type and action.type(text)
            return text
        except (ValueError, argparse.ArgumentTypeError):
            continue
    raise AssertionError(action)


def words_for(action):
    """An option as it is typed, its values too."""
    if action.nargs == 0:
        return [action.option_strings[-1]]
    count = action.nargs if isinstance(action.nargs, int) else 1
    return [action.option_strings[-1], *[word_for(action)] * count]


@pytest.mark.parametrize("name", COMMANDS)
def test_settings_stand_wherever_they_are_typed(name, monkeypatch):
    parsers, is_entry = parsers_of(name, monkeypatch)
    for words, parser in parsers:
        places = [a for a in parser._actions if not a.option_strings]
        assert "overrides" not in [a.dest for a in places]
        if "settings" not in [a.dest for a in places]:
            continue
        assert is_entry, f"{name} takes settings, which entry.parse takes from wherever they stand"
        options = [a for a in parser._actions if a.option_strings and a.dest != "help"]
        needed = [w for a in options if a.required for w in words_for(a)]
        needed += ["--prompt", "x"] if name == "generate" else []
        given = [word_for(a) for a in places if a.dest != "settings"]
        first = ["x.toml"] if places[-1].nargs == "+" else []
        for option in options:
            # the settings of a stage follow it, and are of it alone; a value may be left out
            if option.dest in ("stage", "chat", "prompt", "file") or option.required:
                continue
            typed = [*words, *given, *first, *needed, *words_for(option), "optim.lr=1"]
            try:
                found = entry.parse(parser, typed[len(words) :])
            except SystemExit:
                pytest.fail(f"mq3 {name} {' '.join(typed)}")
            assert found.settings[-1] == "optim.lr=1", typed


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_typed_whole_and_what_is_wrong_is_one_line(name, monkeypatch, capsys):
    parsers, _ = parsers_of(name, monkeypatch)
    for _, parser in parsers:
        assert isinstance(parser, Parser) and not parser.allow_abbrev
        with pytest.raises(SystemExit) as stop:
            parser.error("no such thing")
        told = capsys.readouterr().err
        assert stop.value.code == 2
        assert told == f"error: no such thing; {parser.prog} --help shows all options\n"


@pytest.mark.parametrize("text", ["32k", "1e3", ""])
def test_a_number_that_is_none_is_said_with_one_that_is(text, capsys):
    parser = Parser(prog="x")
    parser.add_argument("--pack", type=int)
    with pytest.raises(SystemExit):
        parser.parse_args(["--pack", text])
    assert f"--pack: {text!r} is no whole number, as 32768 is;" in capsys.readouterr().err


def test_no_other_parser_is_made():
    made = [
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("megatron_qwen3/**/*.py")
        if "ArgumentParser(" in path.read_text(encoding="utf-8").replace("(argparse.", "")
    ]
    # it takes no options and is called by training alone
    assert made == ["megatron_qwen3/planner/launch_check.py"]
