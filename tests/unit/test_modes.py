"""Modes: each has a loop, settings of its own, and refuses those of the others in a line."""

import ast
import dataclasses
import tomllib
from operator import attrgetter
from pathlib import Path

import pytest

from megatron_qwen3 import train
from megatron_qwen3.config import ConfigError, changes, describe, load, to_toml, validate
from megatron_qwen3.fields import settings_of
from megatron_qwen3.modes import belongs
from megatron_qwen3.posttrain.dialogs.dialog_set import MODES as MODES_OF_DIALOGS
from megatron_qwen3.settings import SETTINGS, TABLES
from megatron_qwen3.toml import emit
from megatron_qwen3.training.metrics_file import ALL_SOURCES
from megatron_qwen3.validate_posttrain import RESULTS

MODES = SETTINGS["run.mode"].rule["choices"]
ROOT = Path(__file__).resolve().parents[2]
TINY = ["model.preset=tiny-dense", "train.steps=10"]
SFT = [*TINY, "run.mode=sft"]
ONE = 'sft.sources=[{name="a", path="p"}]'


def error_of(overrides, paths=()):
    with pytest.raises(ConfigError) as caught:
        load(paths, overrides)
    return str(caught.value)


def test_every_mode_has_a_loop_that_checks_and_runs():
    assert set(train.MODES) == set(MODES)
    for module in train.MODES.values():
        path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        if not path.exists():
            pytest.skip(f"{module} is not there yet")
        body = ast.parse(path.read_text(encoding="utf-8")).body
        arguments = {
            f.name: [a.arg for a in f.args.args] for f in body if isinstance(f, ast.FunctionDef)
        }
        assert arguments["check"] == ["config"]
        assert arguments["run"] == ["config", "layout", "inputs"]


def test_nested_tables_are_read_from_files_and_from_the_command_line(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(
        '[run]\nmode = "sft"\n[sft]\nobjective = "both"\n'
        '[[sft.sources]]\nname = "a"\npath = "p"\nepochs = 3\n'
        '[sft.teacher]\npath = "{dir}/big"\ntop_k = 8\n',
        encoding="utf-8",
    )
    config = load([path], [*TINY, "run.dir=there", "sft.teacher.top_k=16"])
    (source,), teacher = config.sft.sources, config.sft.teacher
    assert (source.name, source.epochs, source.weight) == ("a", 3.0, 1.0)
    assert (teacher.path, teacher.top_k, teacher.temperature) == ("there/big", 16, 1.0)
    assert load([path], [*TINY, "sft.teacher.path=other"]).sft.teacher.path == "other"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sft.teacher.paht=x", "sft.teacher.paht is not a setting; did you mean sft.teacher.path?"),
        ("sft.teacher=x", "sft.teacher is a table of settings, not a setting"),
        ("sft.loss=dialogs", 'sft.loss = "dialogs" is not one of token, dialog'),
        ("sft.teacher.top_k=-1", "sft.teacher.top_k = -1 must be at least 1"),
        ("sft.sources=[{name='a'}]", "sft.sources[0].path is missing"),
        (
            "sft.sources=[{name='a', path='p', epochs=-1}]",
            "sft.sources: epochs of 'a' = -1.0 must be at least 0",
        ),
        ("sft.sources=[{name='a', path='p', weight=nan}]", "weight of 'a' = nan must be above 0"),
        (
            "sft.sources=[{name='a', path='p'}, {name='a', path='q'}]",
            "sft.sources: 2 sources are named 'a'",
        ),
        (
            "sft.sources=[{name='mode thinking', path='p'}]",
            "a source is named 'mode thinking', as held-out results of several sources are",
        ),
        (
            "sft.sources=[{name='a', path='p', epochs=1}, {name='b', path='q'}]",
            "'a' has epochs and 'b' has none; give epochs to every source, or weights",
        ),
        (
            "sft.sources=[{name='a', path='p', epochs=1, weight=2}]",
            "'a' has weight = 2.0 and epochs = 1.0, which both say how much",
        ),
        (
            "sft.teacher.path=big",
            'sft.teacher.path = big goes with sft.objective = "soft_targets" or "both", not "cross',
        ),
    ],
)
def test_wrong_settings_of_a_mode_are_refused_by_name(override, says):
    assert says in error_of([*SFT, override])


def test_a_teacher_has_no_more_tokens_to_compare_than_the_vocabulary():
    told = error_of([*SFT, "sft.objective=both", "sft.teacher.top_k=513"])
    assert "sft.teacher.top_k = 513 exceeds model.vocab_size = 512" in told


def test_no_source_has_the_name_of_a_result_of_several():
    assert set(RESULTS) == {ALL_SOURCES, *(f"mode {mode}" for mode in MODES_OF_DIALOGS[1:])}
    told = error_of([*TINY, "run.mode=reward", 'reward.sources=[{name="all", path="p"}]'])
    assert "reward.sources: a source is named 'all'" in told


@pytest.mark.parametrize("mode", MODES)
def test_a_setting_of_another_mode_is_refused_even_if_it_only_says_the_default(mode, tmp_path):
    asked = [*TINY, f"run.mode={mode}", *["distill.teacher.path=x"] * (mode == "distill")]
    for name, row in SETTINGS.items():
        if belongs(name, mode):
            continue
        table, _, leaf = name.rpartition(".")
        path = tmp_path / "x.toml"
        value = emit(row.default)
        path.write_text(f"[{table}]\n{leaf} = {value}\n", encoding="utf-8")
        for told in (
            error_of(asked, [path]),
            error_of([*asked, f"{name}={value}"]),
        ):
            assert f"{name} is a setting of run.mode = " in told
            assert f'but run.mode = "{mode}"; leave ' in told and len(told.splitlines()) == 1


def test_a_table_of_another_mode_is_one_fault_with_the_way_out():
    told = error_of([*TINY, "sft.loss=dialog", "sft.held_out=0.5", "sft.teacher.path=x"])
    assert told == (
        'sft.loss is a setting of run.mode = "sft", but run.mode = "pretrain"; leave [sft] out, '
        'or set run.mode = "sft"'
    )
    told = error_of([*SFT, "data.sources=[{name='a', path='p'}]", "data.held_out=0.5"])
    assert told.splitlines() == [
        'data.sources is a setting of run.mode = "pretrain", but run.mode = "sft"; leave it out: '
        "it trains on [[sft.sources]]",
        'data.held_out is a setting of run.mode = "pretrain", but run.mode = "sft"; leave it out: '
        "set sft.held_out",
    ]


@pytest.mark.parametrize("mode", ["rl", "distill"])
def test_a_mode_that_samples_refuses_settings_of_rows_that_are_full(mode):
    asked = [*TINY, f"run.mode={mode}", *["distill.teacher.path=x"] * (mode == "distill")]
    more = ["train.global_batch=8", "train.tokens=4096", "eval.tokens=4096"]
    of = 'is a setting of run.mode = "pretrain", "sft" or "reward", but run.mode = '
    assert error_of([*asked, *more]).splitlines() == [
        f'train.global_batch {of}"{mode}"; leave it out: an update has '
        f"rollouts.prompts * rollouts.samples / {mode}.updates answers",
        f'train.tokens {of}"{mode}"; leave it out: answers are of any length; set train.steps',
        f'eval.tokens {of}"{mode}"; leave it out: set rollouts.eval_prompts',
    ]
    assert error_of([*asked, "train.steps=0"]) == "how long is the run? set train.steps"
    config = load([], [*asked, "train.micro_batch=3", f"{mode}.updates=2"])  # divides no batch
    assert config.step_rows == config.rollouts.prompts * config.rollouts.samples / 2


def test_what_runs_that_sample_wrote_down_is_read_and_in_files_of_people_refused(tmp_path):
    for name in ("config.toml", "stage.toml"):
        lines = '[run]\nmode = "rl"\n[model]\npreset = "tiny-dense"\n[train]\nsteps = 1\n'
        lines += "tokens = 0\nglobal_batch = 8\n[eval]\ntokens = 262144\n"
        (tmp_path / name).write_text(lines, encoding="utf-8")
    assert load([tmp_path / "config.toml"]).run.mode == "rl"
    assert len(error_of([], [tmp_path / "stage.toml"]).splitlines()) == 3


def test_where_the_length_of_a_run_does_not_matter_none_has_to_be_set():
    for mode in ("pretrain", "rl"):
        asked = ["model.preset=tiny-dense", f"run.mode={mode}", "optim.warmup_steps=7"]
        assert load([], asked, any_length=True).steps == 1


def test_a_changed_copy_is_asked_for_its_mode_too():
    config = load([], [*SFT, ONE])
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, mode="pretrain"))
    with pytest.raises(ConfigError, match="sft.sources is a setting of run.mode"):
        validate(other)


@pytest.mark.parametrize("mode", MODES)
def test_the_resolved_configuration_names_every_setting_of_its_mode_and_no_other(mode, tmp_path):
    of_modes = {
        "sft": [ONE, "sft.objective=both", "sft.teacher.path=x"],
        "distill": ["distill.teacher.path=x"],
    }
    given = of_modes.get(mode, [])
    config = load([], [*TINY, f"run.mode={mode}", *given])
    text = to_toml(config)
    tree = tomllib.loads(text)
    for name in SETTINGS:
        *tables, leaf = name.split(".")
        table = tree
        for part in tables:
            table = table.get(part, {})
        sources_are_empty = leaf in ("sources", "tasks") and not attrgetter(name)(config)
        assert (leaf in table) == (belongs(name, mode) and not sources_are_empty), name
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    assert load([path]) == config


def test_nested_settings_are_listed_with_their_help():
    text = describe()
    assert "[sft.teacher]" in text
    assert all(row.rule["help"] in text for row in settings_of(TABLES["sft.teacher"]).values())


def test_changed_settings_of_a_nested_table_are_lines_with_both_values():
    before = load([], [*SFT, ONE, "sft.objective=both"])
    now = load([], [*SFT, ONE.replace('"p"', '"q"'), "sft.objective=both", "sft.teacher.top_k=8"])
    assert [line.partition(":")[0] for line in changes(before, now)] == [
        "sft.sources",
        "sft.teacher.top_k",
    ]
    assert "sft.teacher.top_k: 64 → 8" in changes(before, now)
