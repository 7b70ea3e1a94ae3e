"""Options of one name mean the same in all commands, and are typed in one way."""

import argparse
import json
from collections import defaultdict

import pytest
from test_commands import parsers_of

from megatron_qwen3.cli import commands, grammar, launch
from megatron_qwen3.cli.commands import COMMANDS
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.config import ConfigError

# Options that several commands share have one name and one type everywhere.
METAVARS = {
    "--field": "OURS=THEIRS",
    "--generator": "MODEL",
    "--judge": "MODEL",
    "--keep-fields": "NAME",
    "--num-tasks": "N",
    "--seed": "N",
    "--tokenizer": "FOLDER",
    "--top-k": "N",
    "--workers": "N",
    "--partition": "PARTITION",
    "--sbatch": "OPTION=VALUE",
    "--task-id": "N",
    "--time": "TIME",
}
PLACES = ("FILE", "FOLDER", "PREFIX")  # of --out, as what is written there
# One word for what is not the same thing: a run or a job that goes before.
OTHERWISE = {"--after", "--out", "--time"}
# Commands whose output programs read too.
WITH_JSON = {
    "plan",
    "memory",
    "dry-run",
    "data inspect table",
    "data inspect show",
    "data inspect verify",
    "checkpoint",
    "config",
    "report",
    "tasks",
    "study laws run",
    "study laws fit",
    "study fit",
    "study sweep",
    "study validate",
}


@pytest.fixture(scope="module")
def options():
    """The options of each command, by its whole name."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in COMMANDS:
            parsers, _ = parsers_of(name, patch)
            for words, parser in parsers:
                last = name.rpartition(" ")[2]
                is_same = COMMANDS[name].is_one_of_several and words[0] == last
                own = " ".join([name, *words[is_same:]])
                found[own] = [a for a in parser._actions if a.option_strings and a.dest != "help"]
    return found


def shown(options):
    return {
        name: [a for a in actions if a.help != argparse.SUPPRESS]
        for name, actions in options.items()
    }


def test_an_option_of_one_name_has_one_metavar(options):
    found = defaultdict(lambda: defaultdict(list))
    for name, actions in shown(options).items():
        for action in actions:
            word = action.option_strings[0]
            if word in METAVARS:
                assert (action.metavar or "").endswith(METAVARS[word]), (name, word)
            if word == "--out":
                assert action.metavar in PLACES, (name, action.metavar)
            if action.nargs != 0 and action.choices is None:
                found[word][action.metavar].append(name)
    differ = {word: dict(names) for word, names in found.items() if len(names) > 1}
    assert {*differ} <= OTHERWISE, differ


def test_an_option_of_one_name_is_a_switch_everywhere_or_nowhere(options):
    kinds = defaultdict(lambda: defaultdict(list))
    for name, actions in shown(options).items():
        for action in actions:
            for word in action.option_strings:
                kinds[word][action.nargs == 0].append(name)
    both = {word: dict(found) for word, found in kinds.items() if len(found) > 1}
    assert {*both} <= {"--local"}, both  # where a model of ours runs, or the points of a sweep


def test_jobs_and_sizes_are_asked_for_by_no_other_names(options):
    others = {"--hours", "--minutes", "--slurm", "--of", "--task", "--tasks-of", "--text-field"}
    units = ("-gb", "-mb", "-mtokens")
    for name, actions in shown(options).items():
        for action in actions:
            assert action.option_strings[0] not in others, (name, action.option_strings)
            assert not any(word.endswith(units) for word in action.option_strings), (name, action)


def test_results_are_printed_as_json_where_programs_read_them(options):
    for name in WITH_JSON:
        assert any("--json" in a.option_strings and a.nargs == 0 for a in options[name]), name


def test_settings_are_printed_as_json(capsys):
    assert commands.main(["config", "--json", "model.preset=tiny-dense", "train.steps=3"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["steps"] == 3
    assert commands.main(["config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["optim.lr"]["help"]


def typed(add, *words):
    parser = Parser(prog="x")
    add(parser.add_argument)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64GB", 64e9),
        ("64G", 64e9),
        ("1.5T", 1.5e12),
        ("64M", 64e6),
        ("2e9", 2e9),
        ("1GiB", 2**30),
        ("32k", 32e3),
        ("7", 7),
    ],
)
def test_sizes(text, expected):
    assert grammar.size(1, is_counted=True)(text) == expected
    assert grammar.size(1e6, is_counted=True)(text) == expected / 1e6


@pytest.mark.parametrize("text", ["64", "2e9", "0.5"])
def test_bytes_without_a_unit_are_refused_with_what_they_may_mean(text, capsys, monkeypatch):
    """SLURM reads 64 as megabytes, most programs as bytes."""
    choices = f"{text!r} has no unit; valid: {text}GB, {text}MB, or {text}B for bytes"
    with pytest.raises(argparse.ArgumentTypeError, match=choices):
        grammar.size(1e9)(text)
    ((_, clean),) = [row for row in parsers_of("data clean", monkeypatch)[0] if row[0] == ["run"]]
    for word in (text, f"groups={text}"):
        with pytest.raises(SystemExit) as stop:
            clean.parse_args(["--memory", word])
        told = capsys.readouterr().err
        assert stop.value.code == 2 and choices in told and told.count("\n") == 1
    assert grammar.size(1e9)("512B") == 512e-9


@pytest.mark.parametrize("text", ["", "G", "64 apples", "-1M", "0", "0.5", "nan", "inf", "1e400"])
def test_what_is_no_size_is_told_in_one_line(text, capsys):
    def add(add):
        grammar.add_size(add, "--group", "--group-gb", 1e9, "", default=64)

    with pytest.raises(SystemExit) as stop:
        typed(add, f"--group={text}")
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.count("\n") == 1 and f"--group: {text!r}" in told


def test_a_size_and_its_name_of_before_are_one_value():
    def add(add):
        grammar.add_size(add, "--group", "--group-gb", 1e9, "", default=64)

    assert typed(add).group_gb == 64
    assert typed(add, "--group", "500MB").group_gb == 0.5
    assert typed(add, "--group-gb", "0.5").group_gb == 0.5


@pytest.mark.parametrize(
    ("text", "hours"), [("90", 1.5), ("12:00:00", 12), ("2-12", 60), ("0:30:00", 0.5)]
)
def test_times_are_those_of_slurm(text, hours):
    def in_minutes(add):
        grammar.add_minutes(add, default=60)

    assert grammar.hours(text) == hours
    assert typed(in_minutes, "--time", text).minutes == 60 * hours
    assert typed(in_minutes).minutes == 60 and typed(in_minutes, "--minutes", "4").minutes == 4
    assert grammar.of_one(grammar.hours)(text) == repr(float(hours))
    assert grammar.of_one(grammar.hours)(f"groups={text}") == f"groups={float(hours)!r}"


@pytest.mark.parametrize("text", ["soon", "unlimited", "0", "1:2:3:4"])
def test_a_time_that_is_none_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        typed(lambda add: grammar.add_minutes(add, default=60), "--time", text)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "--time: " in told and "valid: " in told


@pytest.mark.parametrize("text", ["de", "deu", "deu_Latn", "deu-Latn", "DE"])
def test_a_language_has_any_usual_code(text):
    assert grammar.language(text) == "deu_Latn"


def test_a_language_that_is_none_is_refused_with_a_near_one():
    with pytest.raises(argparse.ArgumentTypeError, match="did you mean deu_Latn"):
        grammar.language("deu_Latin")


def test_options_of_sbatch_are_typed_with_dashes_or_without():
    assert grammar.sbatch_option("account=lm") == "--account=lm"
    assert grammar.sbatch_option("--reservation=x y") == "--reservation=x y"
    assert grammar.sbatch_option("exclusive") == "--exclusive"
    with pytest.raises(argparse.ArgumentTypeError, match="no OPTION=VALUE"):
        grammar.sbatch_option("=x")
    words = ["train", "x.toml", "--nodes", "2", "--sbatch", "account=lm", "--sbatch=--exclusive"]
    assert launch._parser("x").parse_args(words).sbatch == ["--account=lm", "--exclusive"]


def test_an_input_of_a_cleaning_may_be_a_path_alone(tmp_path, monkeypatch):
    from megatron_qwen3.cli.clean_corpus import _input

    (tmp_path / "books.jsonl.gz").write_bytes(b"")
    (tmp_path / "web").mkdir()
    monkeypatch.chdir(tmp_path)
    assert _input("books.jsonl.gz")[:3] == ("books", "books.jsonl.gz", None)
    assert _input("web/")[:2] == ("web", "web/")
    assert _input("a:code=web")[:3] == ("a", "web", "code")
    with pytest.raises(ConfigError, match="neither a path here nor NAME"):
        _input("gone")


RENAMED = [
    ("data clean", "--resemblance", "--similarity"),
    ("data clean", "--evaluation", "--decontaminate-against"),
    ("plan", "--balanced", "--force-balanced"),
]


@pytest.mark.parametrize("value", [["0.8"], []], ids=["with a value", "without"])
@pytest.mark.parametrize("command, old, new", RENAMED, ids=[row[1] for row in RENAMED])
def test_an_option_by_its_old_name_is_refused_with_the_new_one(command, old, new, value, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main([*command.split(), "--out", "x", old, *value])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.count("\n") == 1
    assert told.startswith(f"error: {old} is called {new} now;")
