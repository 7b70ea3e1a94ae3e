"""Settings: layering, conversion, checks, error texts, and every TOML file of the repository."""

import dataclasses
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3 import config as config_module
from megatron_qwen3.config import Config, ConfigError, changes, load, split, to_toml, validate
from megatron_qwen3.model.flops import parameter_count
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.planner import calibration, hardware, search
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.planner.question import Question
from megatron_qwen3.planner.step import Step
from megatron_qwen3.presets import PRESETS
from megatron_qwen3.settings import (
    SETTINGS,
    TABLES,
    DataConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
)

ROOT = Path(__file__).resolve().parents[2]
LONG = sorted((ROOT / "examples/models/long").glob("*.toml"))
STAGES = sorted((ROOT / "examples/stages").glob("*.toml"))
MODELS = sorted((ROOT / "examples/models").glob("*.toml"))
TINY = ["model.preset=tiny-dense", "train.steps=10"]
SPARSE = ["model.preset=tiny-moe", "train.steps=10"]

# The numbers of H100 that the comments of examples/models name: the least, and that laid out for.
GPUS = {
    "qwen3_0.6b": (1, 8),
    "qwen3_1.7b": (1, 8),
    "qwen3_4b": (4, 8),
    "qwen3_8b": (8, 8),
    "qwen3_14b": (8, 8),
    "qwen3_32b": (16, 16),
    "qwen3_30b_a3b": (16, 32),
    "qwen3_235b_a22b": (128, 256),
    "tiny_dense": (1, 8),
    "tiny_moe": (1, 8),
}


def error_of(overrides, paths=()):
    with pytest.raises(ConfigError) as caught:
        load(paths, overrides)
    return str(caught.value)


@pytest.fixture
def toml(tmp_path):
    def write(text, name="x.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


# Layers


def test_later_layers_win_and_untouched_settings_keep_their_defaults(toml):
    first = toml('[model]\npreset = "tiny-moe"\n[optim]\nlr = 1e-3\nmin_lr = 1e-4\n', "first.toml")
    second = toml("[optim]\nlr = 2e-3\n[train]\nsteps = 5\n", "second.toml")
    config = load([first, second], ["train.steps=7"])
    assert (config.optim.lr, config.optim.min_lr, config.train.steps) == (2e-3, 1e-4, 7)
    assert config.optim.beta2 == 0.95


def test_explicit_model_keys_beat_the_preset_wherever_either_stands(toml):
    base = toml("[model]\nrope_theta = 10_000\nnum_layers = 2\n", "stage.toml")
    size = toml('[model]\npreset = "tiny-dense"\n[train]\nsteps = 1\n', "model.toml")
    for order in ([base, size], [size, base]):
        model = load(order).model
        assert (model.rope_theta, model.num_layers, model.hidden_size) == (10_000.0, 2, 64)


def test_a_models_file_after_another_models_is_refused_with_both_named(toml):
    """Its layout and folder would be the other's."""
    small = toml('[model]\npreset = "tiny-dense"\n', "small.toml")
    large = toml('[model]\npreset = "qwen3-8b"\n[parallel]\ntensor = 2\n', "large.toml")
    with pytest.raises(ConfigError) as raised:
        load([large, small], ["train.steps=1"])
    assert str(raised.value) == (
        f'{small}: model.preset = "tiny-dense", but {large} has "qwen3-8b" and settings for that '
        "model, as its layout and run.dir, which would stay; give one model's file"
    )
    with pytest.raises(ConfigError, match='command line: model.preset = "tiny-moe", but'):
        load([large], ["model.preset=tiny-moe", "train.steps=1"])
    assert load([large, large], ["model.preset=qwen3-8b", "train.steps=1"]).parallel.tensor == 2


def test_a_run_does_not_become_another_model_by_a_presets_name(tmp_path):
    """Its settings hold all sizes, which would stay beside the other's name."""
    saved = tmp_path / "config.toml"
    saved.write_text(to_toml(load([], TINY)))
    with pytest.raises(ConfigError, match='model.preset = "tiny-moe", but .*config.toml has "tiny'):
        load([saved], ["model.preset=tiny-moe"])


@pytest.mark.parametrize("path", LONG, ids=lambda path: path.stem)
def test_a_layout_of_long_rows_is_not_put_after_another_models_file(path):
    other = "qwen3_8b" if path.stem != "qwen3_8b" else "qwen3_4b"
    with pytest.raises(ConfigError, match="give one model's file"):
        load([ROOT / f"examples/models/{other}.toml", path], ["train.steps=1"])


def test_a_later_file_replaces_the_list_of_sources(toml):
    one = toml('[[data.sources]]\nname = "a"\npath = "p"\n', "one.toml")
    two = toml('[[data.sources]]\nname = "b"\npath = "q"\nweight = 2\n', "two.toml")
    assert load([one, two], TINY).data.sources == (SourceConfig("b", "q", 2.0),)


def test_sources_can_be_given_on_the_command_line():
    config = load(
        [], [*TINY, 'data.sources=[{name="a", path="p"}, {name="b", path="q", weight=3}]']
    )
    assert config.data.sources == (SourceConfig("a", "p", 1.0), SourceConfig("b", "q", 3.0))


def test_every_preset_fills_every_model_field():
    for preset in PRESETS.values():
        names = {f.name for f in dataclasses.fields(ModelConfig)}
        # run.mode decides the head, and installed packages the kind.
        assert {"preset", "head", "kind", *preset} == names


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("qwen3")])
def test_presets_hold_what_the_released_configurations_share(name):
    model = load([], [f"model.preset={name}", "train.steps=1"]).model
    assert (model.head_dim, model.vocab_size, model.norm_eps) == (128, 151_936, 1e-6)
    assert (model.rope_theta, model.init_std, model.router_aux_loss) == (1e6, 0.02, 1e-3)
    assert model.tie_embeddings == (parameter_count(model) < 5e9)
    assert model.num_query_groups == (4 if model.num_experts else 8)


# Conversion


@pytest.mark.parametrize("text", ["3e12", "3_000_000_000_000", "3000000000000.0"])
def test_whole_numbers_may_be_written_in_any_way_that_is_whole(text):
    tokens = load([], ["model.preset=tiny-dense", f"train.tokens={text}"]).train.tokens
    assert tokens == 3_000_000_000_000 and type(tokens) is int


def test_whole_numbers_become_floats_where_the_setting_is_one():
    weight_decay = load([], [*TINY, "optim.weight_decay=1"]).optim.weight_decay
    assert weight_decay == 1.0 and type(weight_decay) is float


def test_a_path_of_a_file_may_have_an_equals_sign(tmp_path):
    files = [str(tmp_path / "lr=1" / "config.toml"), "a.toml"]
    pairs = ["optim.lr=1e-3", "run.dir=runs/lr=1"]
    assert split([files[0], pairs[0], files[1], pairs[1]]) == (files, pairs)


def test_strings_of_the_command_line_need_no_quotes():
    config = load([], [*TINY, "run.name=8", "run.dir='a b'", "data.tokenizer=data/tok=1.json"])
    assert (config.run.name, config.run.dir) == ("8", "a b")
    assert config.data.tokenizer == "data/tok=1.json"
    assert config.run_dir == Path("a b/8")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.tokens=1.5", "train.tokens = 1.5 is not a whole number"),
        ("train.steps=true", "train.steps = true is not a whole number"),
        ("train.steps=inf", "train.steps = inf is not a whole number"),
        ("optim.lr=fast", 'optim.lr = "fast" is not a number'),
        ("optim.lr=true", "optim.lr = true is not a number"),
        ("parallel.sequence=1", "parallel.sequence = 1 is not true or false"),
        (
            "parallel.pipeline_layers=4",
            "parallel.pipeline_layers = 4 is not a list of whole numbers",
        ),
        (
            "parallel.pipeline_layers=[2, 1.5]",
            "parallel.pipeline_layers[1] = 1.5 is not a whole number",
        ),
        ("data.sources=web", 'data.sources = "web" is not a list of tables'),
        ("data.sources=[1]", "data.sources[0] = 1 is not a table of name, path, weight"),
        ("data.sources=[{name='a'}]", "data.sources[0].path is missing"),
        (
            "data.sources=[{name='a', path='p', wieght=1}]",
            "data.sources[0].wieght is not known; did you mean weight?",
        ),
        ("data.sources=[{", "data.sources is not valid TOML"),
        ("verbose", "'verbose' is neither a TOML file nor key=value"),
    ],
)
def test_values_of_the_wrong_type_are_refused_by_name(override, says):
    text = error_of([*TINY, override])
    assert text.startswith("command line: ") and says in text


# Unknown names, unreadable files


def test_an_unknown_key_names_its_file_and_the_likely_setting(toml):
    path = toml("[optim]\nweigth_decay = 0.1\n")
    assert error_of([], [path]) == (
        f"{path}: optim.weigth_decay is not a setting; did you mean optim.weight_decay?"
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lr=1", "lr is not a setting; did you mean optim.lr?"),
        ("train.lr=1", "train.lr is not a setting; did you mean optim.lr?"),
        ("optin.lr=1", "optin.lr is not a setting; did you mean optim.lr?"),
        (
            "model.every_steps=1",
            "did you mean eval.every_steps or checkpoint.every_steps or log.every_steps?",
        ),
        ("optim=1", "optim is a table of settings, not a setting"),
        (
            "sft.sources.path=x",
            """a list that is given whole: 'sft.sources=[{name="a",path="…"}]'""",
        ),
        ("reward.sources.0.path=x", "but reward.sources is, a list that is given whole: "),
        ("data.sources[0].path=x", "but data.sources is, a list that is given whole: "),
        ("optim.lr.max=1", "optim.lr.max is not a setting, but optim.lr is"),
        ("zzz=1", "zzz is not a setting; python -m megatron_qwen3.config lists them"),
    ],
)
def test_unknown_keys_of_the_command_line_get_a_guess(override, says):
    assert says in error_of([*TINY, override])


def test_an_unknown_preset_lists_all_and_guesses():
    text = error_of(["model.preset=qwen-8b"])
    assert 'model.preset = "qwen-8b" is no preset; did you mean qwen3-8b?' in text
    assert all(name in text for name in PRESETS)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[optim]\nlr = = 3\n", "not valid TOML: Invalid value (at line 2"),
        ("[optimiser]\nlr = 3\n", "optimiser is not a setting; did you mean optim"),
        ("optim = 3\n", "optim is a table; write [optim]"),
        ("lr = 3\n", "lr is not a setting; did you mean optim.lr?"),
        ("[model.moe]\nx = 1\n", "model.moe is not a setting"),
    ],
)
def test_a_faulty_file_is_named_with_its_fault(toml, content, says):
    path = toml(content)
    text = error_of([], [path])
    assert text.startswith(f"{path}: ") and says in text


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert "none.toml: cannot be read (No such file" in error_of([], [tmp_path / "none.toml"])
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    assert "binary.toml: cannot be read (not UTF-8" in error_of([], [tmp_path / "binary.toml"])


# Checks


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([*TINY, "train.global_batch=0"], "train.global_batch = 0 must be at least 1"),
        ([*TINY, "parallel.tensor=-1"], "parallel.tensor = -1 must be at least 1"),
        ([*TINY, "optim.lr=0"], "optim.lr = 0.0 must be above 0"),
        ([*TINY, "optim.lr=nan"], "optim.lr = nan must be above 0"),
        ([*TINY, "optim.lr=inf"], "optim.lr = inf must be finite"),
        ([*TINY, "optim.beta2=1"], "optim.beta2 = 1.0 must be below 1"),
        ([*TINY, "distill.beta=1.5"], "distill.beta = 1.5 must be at most 1"),
        ([*TINY, "data.held_out=1"], "data.held_out = 1.0 must be below 1"),
        ([*TINY, "run.seed=4611686018427387904"], "must be below 4611686018427387904"),
        ([*TINY, "run.name=''"], "run.name must not be empty"),
        ([*TINY, "parallel.recompute=ful"], '"ful" is not one of none, selective, full'),
        ([*TINY, "optim.schedule=linear"], '"linear" is not one of cosine, constant, wsd'),
        (["train.steps=1"], "no model: set model.preset to one of qwen3-0.6b"),
        (["model.num_layers=2", "train.steps=1"], "model.hidden_size = 0 must be at least 1"),
        ([*TINY, "model.ffn_hidden_size=0"], "model.ffn_hidden_size = 0, but the model is dense"),
        ([*TINY, "model.head_dim=33"], "model.head_dim = 33 must be even"),
        (
            [*TINY, "model.num_query_groups=3"],
            "model.num_query_groups = 3 does not divide model.num_attention_heads = 4 "
            "(preset tiny-dense); valid: 1, 2, 4",
        ),
        ([*TINY, "model.experts_per_token=2"], "experts_per_token = 2 needs model.num_experts"),
        ([*SPARSE, "model.experts_per_token=9"], "= 9 exceeds model.num_experts = 8"),
        (
            [*SPARSE, "model.router_balance=micro_batch", "parallel.tensor=2"],
            'model.router_balance = "micro_batch", but parallel.tensor * context = 2 * 1 ranks',
        ),
        (
            [*SPARSE, "model.expert_ffn_hidden_size=0"],
            "model.expert_ffn_hidden_size = 0, but model.num_experts = 8 (preset tiny-moe)",
        ),
        (
            ["model.preset=qwen3-30b-a3b", "train.steps=1", "parallel.tensor=3"],
            "parallel.tensor = 3 does not divide model.num_query_groups = 4 "
            "(preset qwen3-30b-a3b); valid: 1, 2, 4",
        ),
        (
            ["model.preset=qwen3-30b-a3b", "train.steps=1", "parallel.tensor=8"],
            "parallel.tensor = 8 does not divide model.num_query_groups = 4",
        ),
        (
            [*TINY, "parallel.tensor=2", "model.vocab_size=511"],
            "does not divide model.vocab_size = 511 (preset tiny-dense); valid: 1",
        ),
        (
            [*TINY, "parallel.tensor=2", "model.ffn_hidden_size=191"],
            "parallel.tensor = 2 does not divide model.ffn_hidden_size = 191",
        ),
        (
            [*TINY, "parallel.tensor=2", "data.sequence_length=33"],
            "data.sequence_length = 33 is no multiple of 2, which parallel.tensor = 2",
        ),
        (
            [*TINY, "parallel.context=2", "data.sequence_length=30"],
            "data.sequence_length = 30 is no multiple of 4, which parallel.context = 2 needs; "
            "valid near it: 28, 32",
        ),
        (
            [*TINY, "parallel.context=3", "parallel.tensor=2", "data.sequence_length=20"],
            "data.sequence_length = 20 is no multiple of 6, which parallel.context = 3 and "
            "parallel.tensor = 2 with parallel.sequence = true needs; valid near it: 18, 24",
        ),
        ([*TINY, "parallel.expert=2"], "parallel.expert = 2, but the model is dense"),
        ([*TINY, "parallel.expert_tensor=2"], "parallel.expert_tensor = 2, but the model is dense"),
        (
            [*SPARSE, "parallel.expert=3"],
            "parallel.expert = 3 does not divide model.num_experts = 8 (preset tiny-moe); "
            "valid: 1, 2, 4, 8",
        ),
        (
            [*SPARSE, "parallel.expert_tensor=3"],
            "parallel.expert_tensor = 3 does not divide model.expert_ffn_hidden_size = 64",
        ),
        (
            [*SPARSE, "parallel.tensor=2", "parallel.sequence=false"],
            "parallel.sequence = false with parallel.tensor = 2",
        ),
        ([*TINY, "parallel.virtual_pipeline=2"], "virtual_pipeline = 2 needs parallel.pipeline"),
        ([*TINY, "parallel.pipeline=5"], "= 5 * 1 = 5 exceeds model.num_layers = 4"),
        (
            [*TINY, "parallel.pipeline=2", "parallel.pipeline_layers=[1, 2]"],
            "parallel.pipeline_layers adds up to 3 layers, but model.num_layers = 4",
        ),
        (
            [*TINY, "parallel.pipeline=2", "parallel.pipeline_layers=[4]"],
            "parallel.pipeline_layers has 1 stages, but parallel.pipeline * virtual_pipeline = "
            "2 * 1 = 2",
        ),
        (
            [*TINY, "parallel.pipeline=2", "parallel.pipeline_layers=[4, 0]"],
            "every stage needs at least 1 layer",
        ),
        ([*TINY, "train.tokens=1e9"], "both say how long"),
        (["model.preset=tiny-dense"], "how long is the run?"),
        (
            ["model.preset=tiny-dense", "train.tokens=100"],
            "train.tokens = 100 is less than one step",
        ),
        ([*TINY, "train.micro_batch=3"], "micro_batch = 3 does not divide train.global_batch = 8"),
        ([*TINY, "optim.min_lr=1"], "optim.min_lr = 1.0 exceeds optim.lr"),
        ([*TINY, "optim.decay_steps=2"], 'goes with optim.schedule = "wsd", not "cosine"'),
        ([*TINY, "optim.warmup_steps=11"], "= 11 + 0 exceeds the 10 steps of the run"),
        (
            [*TINY, "data.sources=[{name='a', path='p'}, {name='a', path='q'}]"],
            "data.sources: 2 sources are named 'a'",
        ),
        ([*TINY, "data.sources=[{name='a', path='p', weight=0}]"], "weight of 'a' = 0.0 must be"),
        ([*TINY, "data.sources=[{name='a', path=''}]"], "'a' has an empty path"),
        ([*TINY, "data.sources=[{name='', path='p'}]"], "a source has an empty name"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_reason(overrides, says):
    assert says in error_of(overrides)


def test_all_faults_are_told_at_once():
    assert len(error_of([*TINY, "optim.min_lr=1", "train.micro_batch=3"]).splitlines()) == 2


def test_a_changed_copy_is_checked_like_a_loaded_one():
    config = load([], TINY)
    changed = dataclasses.replace(config, run=dataclasses.replace(config.run, mode="juggle"))
    with pytest.raises(ConfigError, match='run.mode = "juggle" is not one of'):
        validate(changed)


def test_a_token_budget_is_whole_steps_rounded_down():
    config = load([], ["model.preset=tiny-dense", "data.sequence_length=10", "train.tokens=259"])
    assert (config.step_tokens, config.steps) == (80, 3)


# Files


def test_the_previous_stage_is_found_beside_this_one():
    config = load([], [*TINY, "run.dir=somewhere", "checkpoint.init_from={dir}/first"])
    assert config.checkpoint.init_from == "somewhere/first"


strings = st.text(st.characters(codec="utf-8"), min_size=1)
sources = st.lists(
    st.builds(SourceConfig, strings, strings, st.floats(1e-9, 1e9)),
    unique_by=lambda source: source.name,
    max_size=3,
)


@given(name=strings, tokenizer=st.text(st.characters(codec="utf-8")), sources=sources)
def test_resolved_configuration_reads_back_equal(tmp_path_factory, name, tokenizer, sources):
    config = dataclasses.replace(
        load([], [*TINY, "parallel.pipeline=2", "parallel.pipeline_layers=[1, 3]"]),
        run=RunConfig(name=name),
        data=DataConfig(tokenizer=tokenizer, sources=tuple(sources)),
    )
    path = tmp_path_factory.mktemp("resolved") / "config.toml"
    path.write_bytes(to_toml(config).encode())
    assert load([path]) == config


def test_the_printed_settings_name_each_with_its_help():
    text = config_module.describe()
    assert all(row.rule["help"] in text for row in SETTINGS.values())
    assert all(f"[{table}]" in text for table in TABLES)


@pytest.mark.parametrize(
    ("stage", "model"), list(product(STAGES, MODELS)), ids=lambda path: path.stem
)
def test_every_stage_composes_with_every_model_in_either_order(stage, model):
    config = load([stage, model])
    assert config == load([model, stage])
    sources = {"pretrain": config.data.sources, "sft": config.sft.sources}
    sources["reward"] = config.reward.sources
    sources |= dict.fromkeys(("rl", "distill"), config.rollouts.tasks)
    assert str(config.run_dir).startswith("runs/") and sources[config.run.mode]
    for ranks in GPUS[model.stem]:
        layout = Layout.of(config, ranks)
        assert sum(layout.stage_layers) == config.model.num_layers


def test_each_stage_starts_from_the_stage_before():
    stages = [stage for stage in STAGES if stage.stem.startswith("pretrain")]
    runs = [load([stage, MODELS[0]]) for stage in stages]
    starts = [run.checkpoint.init_from for run in runs]
    assert starts == ["", *(str(run.run_dir) for run in runs[:-1])]


def test_there_is_a_model_file_for_every_preset():
    presets = [load([STAGES[0], path]).model.preset for path in MODELS]
    assert sorted(presets) == sorted(PRESETS)


def test_reading_a_configuration_loads_neither_torch_nor_megatron_core():
    code = (
        "import sys, megatron_qwen3.config, megatron_qwen3.presets, megatron_qwen3.validate, "
        "megatron_qwen3.parallel.layout, megatron_qwen3.model.flops; "
        "print(sorted({'torch', 'megatron', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout.strip() == "[]", out.stderr


def test_an_empty_configuration_asks_for_a_model_first():
    with pytest.raises(ConfigError, match="^no model: "):
        validate(Config())


@pytest.mark.parametrize(
    "changes, named",
    [
        (["model.hidden_size=68"], "model.hidden_size = 68"),
        (["model.expert_ffn_hidden_size=36"], "model.expert_ffn_hidden_size / parallel.expert_te"),
        (["parallel.expert_tensor=8"], "48 / 8 = 6"),
    ],
)
def test_grouped_products_of_a_gpu_need_rows_of_whole_16_bytes(changes, named):
    sizes = ["model.expert_ffn_hidden_size=48", *changes, "train.precision=bf16"]
    load([], [*SPARSE, *sizes])  # a CPU takes them
    message = error_of([*SPARSE, *sizes, "run.device=cuda"])
    assert named in message and "multiple of 8 (16 bytes in bf16)" in message
    assert "valid" in message


def test_experts_in_float32_are_no_grouped_product():
    sizes = ["model.hidden_size=66", "model.expert_ffn_hidden_size=37", "run.device=cuda"]
    load([], [*SPARSE, *sizes, "train.precision=fp32"])


def test_a_dense_model_has_no_grouped_products():
    load([], [*TINY, "model.hidden_size=68", "run.device=cuda"])


def test_changed_settings_are_a_line_each_with_both_values():
    base = ["model.preset=tiny-dense", "train.steps=10"]
    before = load([], [*base, 'data.sources=[{name="a", path="x"}]'])
    assert changes(before, before) == []
    more = ["optim.lr=2e-3", "optim.beta2=0.99", "run.seed=7", "model.rope_theta=1e4"]
    sources = 'data.sources=[{name="a\\u001b[2J", path="' + "x" * 99 + '"}]'
    lines = changes(before, load([], [*base, *more, sources]))
    assert [line for line in lines if not line.startswith("data.sources")] == [
        "run.seed: 1234 → 7",
        "model.rope_theta: 1000000.0 → 10000.0",
        "optim.lr: 0.0003 → 0.002",
        "optim.beta2: 0.95 → 0.99",
    ]
    (of_sources,) = (line for line in lines if line.startswith("data.sources"))
    assert of_sources.endswith("…") and "\x1b" not in of_sources and 'path = "x"' in of_sources


@pytest.mark.parametrize("minutes", [0.5, 2])
def test_a_time_limit_within_its_own_margin_is_refused(minutes):
    base = ["train.steps=1", "model.preset=tiny-dense"]
    told = error_of([*base, f"run.time_limit_minutes={minutes}"])
    assert "run.stop_early_seconds = 120 before its end the run saves" in told
    load([], [*base, "run.time_limit_minutes=2.1"])


def test_a_mode_says_which_head_its_model_has_and_old_settings_have_the_vocabularys():
    before, reward = load([], TINY), load([], [*TINY, "run.mode=reward"])
    assert (reward.model.head, before.model.head) == ("scalar", "vocabulary")
    assert 'model.head: "vocabulary" → "scalar"' in changes(before, reward)
    assert error_of([*TINY, "model.head=scalar"]) == (
        'model.head = "scalar", but run.mode = "pretrain" trains "vocabulary"; leave model.head '
        'out, or set run.mode = "reward"'
    )


# Layouts of long rows

LONG_STAGE = ROOT / "examples/stages/pretrain_3_long_context.toml"
# By model the numbers of H100 that the comments name, with what they say must be passed.
LONG_GPUS = {
    "qwen3_0.6b": {8: ()},
    "qwen3_1.7b": {1: ("parallel.context=1", "parallel.recompute=full"), 8: (), 16: ()},
    "qwen3_4b": {4: (), 8: (), 32: ()},
    "qwen3_8b": {8: (), 64: ()},
    "qwen3_14b": {8: ("parallel.recompute=selective",), 64: ()},
    "qwen3_32b": {16: ("parallel.recompute=selective",), 128: ()},
    "qwen3_30b_a3b": {16: ("parallel.context=4",), 32: (), 64: ()},
    "qwen3_235b_a22b": {128: (), 256: ()},
}


def test_every_released_size_has_a_layout_of_long_rows_which_sets_nothing_else():
    assert {path.stem for path in LONG} == {m.stem for m in MODELS if m.stem.startswith("qwen3")}
    assert {path.stem for path in LONG} == {*LONG_GPUS}
    for path in LONG:
        whole = load([LONG_STAGE, ROOT / "examples/models" / path.name, path])
        plain = load([LONG_STAGE, ROOT / "examples/models" / path.name])
        assert dataclasses.replace(whole, parallel=plain.parallel) == plain
        assert whole.parallel != plain.parallel


@pytest.mark.parametrize("path", LONG, ids=lambda path: path.stem)
def test_a_layout_of_long_rows_fits_as_its_comment_says_with_room_left(path):
    text, room = path.read_text(encoding="utf-8"), 0.92
    for gpus, more in LONG_GPUS[path.stem].items():
        files = [LONG_STAGE, ROOT / "examples/models" / path.name, path]
        needed = Memory.of(Job.of(load(files, more), gpus)).total / 1e9
        assert needed <= room * hardware.load("h100").memory_gb
        assert all(setting in text for setting in more)
        assert f"{needed:.0f} GB" in text, needed


@pytest.mark.parametrize("path", LONG, ids=lambda path: path.stem)
def test_a_layout_of_long_rows_is_as_fast_as_its_comment_says(path):
    text = path.read_text(encoding="utf-8")
    told = [float(n.replace(",", "")) for n in re.findall(r"([\d,]+)\stokens/s", text)]
    cluster, constants = hardware.load("h100"), calibration.load()
    for gpus in (gpus for gpus, more in LONG_GPUS[path.stem].items() if not more):
        config = load([LONG_STAGE, ROOT / "examples/models" / path.name, path])
        speed = Step.of(Job.of(config, gpus), cluster, constants).tokens_per_second_per_gpu
        assert min(abs(speed / n - 1) for n in told) < 0.02, speed
    assert "mq3 plan --gpu" in " ".join(text.split())


@pytest.mark.slow
@pytest.mark.parametrize("path", LONG, ids=lambda path: path.stem)
def test_no_layout_of_whole_rows_is_faster_where_ranks_share_them(path):
    files = [LONG_STAGE, ROOT / "examples/models" / path.name]
    gpus, constants, cluster = max(LONG_GPUS[path.stem]), calibration.load(), hardware.load("h100")
    cluster = dataclasses.replace(cluster, memory_gb=0.92 * cluster.memory_gb)  # room is left
    config = load([*files, path])
    question = Question(
        *(config.model, cluster, gpus, config.data.sequence_length, config.train.global_batch),
        dispatchers=("alltoall",),
        fixed=(("context", 1), ("micro_batch", 1), ("virtual", 1)),
    )
    best = search.search(question, constants)[0].step
    ours = Step.of(Job.of(config, gpus), cluster, constants)
    assert ours.tokens_per_second_per_gpu >= best.tokens_per_second_per_gpu
