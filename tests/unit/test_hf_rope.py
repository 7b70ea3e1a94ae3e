"""Positions in config.json: every spelling is read rightly, or refused in one line."""

import json
import math

import pytest

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.convert import hf_config
from megatron_qwen3.convert.hf_rope import length_factor, rope_fields
from megatron_qwen3.presets import PRESETS
from megatron_qwen3.settings_rope import RopeConfig

THETA, PLAIN = 1e6, RopeConfig()
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
OURS = RopeConfig(yarn_factor=4.0, yarn_original_length=32768)
DCA = {"chunk_size": 1024, "local_size": 128}


def settings(*more):
    return load([], ["model.preset=tiny-dense", "train.steps=1", *more])


def written(folder, rope=PLAIN, theta=None):
    """A config.json of ours; its content."""
    model = settings(*([f"model.rope_theta={theta}"] if theta else [])).model
    hf_config.write_config(folder, model, rope, 4096, "float32", {})
    return json.loads((folder / "config.json").read_text())


def read(folder, remove=(), name="config.json", **fields):
    """Of a config.json of ours without all that it says of positions, but with these fields."""
    config = written(folder)
    for field in ("rope_parameters", "rope_scaling", "rope_theta", *remove):
        config.pop(field, None)
    (folder / name).write_text(json.dumps(config | fields))
    return hf_config.read_config(folder)


def error_of(folder, **fields):
    with pytest.raises(ConfigError) as raised:
        read(folder, **fields)
    text = str(raised.value)
    assert "config.json" in text and "\n" not in text
    return text


SPELLINGS = {
    "transformers 4": {"rope_theta": THETA, "rope_scaling": YARN},
    "before 4.43": {
        "rope_theta": THETA,
        "rope_scaling": {"type": "yarn"} | {k: v for k, v in YARN.items() if k != "rope_type"},
    },
    "both names": {"rope_theta": THETA, "rope_scaling": YARN | {"type": "yarn"}},
    "transformers 5": {"rope_parameters": YARN | {"rope_theta": THETA}},
    "5 with the base outside": {"rope_theta": THETA, "rope_parameters": YARN},
    "base in rope_scaling": {"rope_scaling": YARN | {"rope_theta": THETA}},
    "4 and 5": {
        "rope_theta": THETA,
        "rope_scaling": YARN,
        "rope_parameters": YARN | {"rope_theta": THETA},
    },
    "null beside": {"rope_scaling": None, "rope_parameters": YARN | {"rope_theta": 1000000}},
    "original outside": {
        "rope_theta": THETA,
        "original_max_position_embeddings": 32768,
        "rope_scaling": {"rope_type": "yarn", "factor": 4},
    },
    "defaults written out": {
        "rope_theta": THETA,
        "rope_scaling": YARN
        | {"beta_fast": 32, "beta_slow": 1, "truncate": True, "attention_factor": None},
    },
    "the default as a number": {
        "rope_theta": THETA,
        "rope_scaling": YARN | {"attention_factor": 0.1 * math.log(4) + 1, "attn_factor": 1},
    },
    "mscale alone, which counts for nothing": {
        "rope_theta": THETA,
        "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0},
    },
    "with what is of no use": {
        "rope_theta": THETA,
        "rope_scaling": YARN | {"finetuned": False},
        "rope_parameters": YARN,
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_one_model_is_read_alike(tmp_path, spelling):
    found = read(tmp_path, **SPELLINGS[spelling])
    assert (found.model.rope_theta, found.rope) == (THETA, OURS)
    assert found.model.preset == "tiny-dense"


@pytest.mark.parametrize(
    ("given", "factor"),
    [
        ({"attention_factor": 1.0}, 1.0),
        ({"attention_factor": 1.25, "mscale": 2, "mscale_all_dim": 1}, 1.25),
        (
            {"mscale": 1.0, "mscale_all_dim": 0.707},
            (0.1 * math.log(4) + 1) / (0.1 * 0.707 * math.log(4) + 1),
        ),
        ({"attn_factor": 1.1}, 1.1 * (0.1 * math.log(4) + 1)),
    ],
)
def test_the_attention_factor_is_replaced_or_multiplied_as_its_name_says(tmp_path, given, factor):
    found = read(tmp_path, rope_theta=THETA, rope_scaling=YARN | given).rope
    assert found.attention_factor == pytest.approx(factor, rel=1e-15)
    if "attention_factor" in given:
        assert found.yarn_attention_factor == factor


def test_other_bounds_are_read(tmp_path):
    given = {"beta_fast": 16, "beta_slow": 2.0, "truncate": False}
    found = read(tmp_path, rope_theta=THETA, rope_scaling=YARN | given).rope
    assert (found.yarn_beta_fast, found.yarn_beta_slow, found.yarn_truncate) == (16, 2, False)


def test_a_factor_of_1_is_plain(tmp_path):
    assert read(tmp_path, rope_theta=THETA, rope_scaling=YARN | {"factor": 1}).rope == RopeConfig()


@pytest.mark.parametrize("kind", ["linear", "dynamic", "longrope", "llama3", "proportional", "su"])
def test_other_kinds_of_positions_are_refused(tmp_path, kind):
    for name in ("rope_type", "type"):
        text = error_of(tmp_path, rope_theta=THETA, rope_scaling={name: kind, "factor": 4.0})
        assert f"rope_scaling.rope_type = '{kind}'" in text and "valid: default, yarn" in text


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rope_scaling": YARN}, "rope_theta or rope_parameters.rope_theta is missing"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_theta is missing"),
        (
            {"rope_theta": THETA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_scaling.original_max_position_embeddings is missing",
        ),
        (
            {"rope_theta": THETA, "rope_scaling": YARN, "original_max_position_embeddings": 40960},
            "are not equal: [32768, 40960]",
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": YARN | {"rope_theta": THETA}},
            "rope_theta and rope_parameters.rope_theta are not equal: [10000.0, 1000000.0]",
        ),
        (
            {
                "rope_scaling": YARN,
                "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
            },
            "do not agree",
        ),
        (
            {"rope_theta": THETA, "rope_scaling": YARN, "rope_parameters": YARN | {"factor": 2.0}},
            "do not agree",
        ),
        (
            {"rope_theta": THETA, "rope_scaling": YARN | {"type": "linear"}},
            "rope_type and type are not equal",
        ),
        (
            {"rope_theta": THETA, "rope_scaling": {"factor": 4.0}},
            "has no rope_type; valid: default, yarn",
        ),
        (
            {"rope_theta": THETA, "rope_parameters": {"full_attention": YARN}},
            "has no rope_type",
        ),
        (
            {"rope_theta": THETA, "rope_scaling": YARN | {"long_factor": [1.0]}},
            "rope_scaling.long_factor = [1.0] is not known",
        ),
        (
            {"rope_theta": THETA, "rope_scaling": {"type": "default", "mrope_section": [1]}},
            "rope_scaling.mrope_section",
        ),
        ({"rope_theta": THETA, "rope_scaling": "yarn"}, "rope_scaling = 'yarn' is no table"),
        ({"rope_theta": THETA, "rope_scaling": YARN | {"factor": None}}, "factor is missing"),
        ({"rope_theta": THETA, "rope_scaling": YARN | {"factor": "4"}}, "is not a number"),
        ({"rope_theta": THETA, "rope_scaling": YARN | {"factor": True}}, "is not a number"),
        ({"rope_theta": THETA, "rope_scaling": YARN | {"factor": 0.5}}, "must be at least 1"),
        ({"rope_theta": THETA, "rope_scaling": YARN | {"factor": 10**400}}, "is not a number"),
        ({"rope_theta": THETA, "rope_scaling": YARN | {"factor": math.nan}}, "is not a number"),
        ({"rope_theta": THETA, "rope_scaling": YARN | {"truncate": None}}, "true or false"),
        (
            {"rope_theta": THETA, "rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 2}},
            "rope.yarn_beta_fast = 1 must be above rope.yarn_beta_slow = 2",
        ),
        (
            {"rope_theta": THETA, "rope_scaling": YARN | {"attention_factor": 0}},
            "the attention factor 0.0 must be above 0",
        ),
        (
            {
                "rope_theta": THETA,
                "rope_scaling": YARN | {"attention_factor": 1.5, "attn_factor": 2},
            },
            "attention_factor and attn_factor both",
        ),
        (
            {"rope_theta": THETA, "rope_scaling": YARN | {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor must be 1.0",
        ),
        (
            {
                "rope_theta": THETA,
                "rope_scaling": YARN | {"original_max_position_embeddings": 32768.5},
            },
            "is not a whole number",
        ),
    ],
)
def test_what_is_missing_or_does_not_agree_is_refused_in_one_line(tmp_path, fields, named):
    assert named in error_of(tmp_path, **fields)


ROPES = {
    "plain": RopeConfig(),
    "yarn": OURS,
    "all of it": RopeConfig(
        yarn_factor=2.5,
        yarn_original_length=4096,
        yarn_beta_fast=16.0,
        yarn_beta_slow=2.0,
        yarn_truncate=False,
        yarn_attention_factor=1.0857263992561355,
    ),
}


@pytest.mark.parametrize("theta", [1e4, 5e6])
@pytest.mark.parametrize("name", ROPES)
def test_what_is_written_is_read_back(tmp_path, name, theta):
    rope = ROPES[name]
    config = written(tmp_path, rope, theta)
    found = hf_config.read_config(tmp_path)
    assert (found.model.rope_theta, found.rope) == (theta, rope)
    assert config["max_position_embeddings"] == (rope.yarn_length or 4096)
    assert "dual" not in str(config)


@pytest.mark.parametrize("name", ROPES)
def test_transformers_4_and_5_are_told_the_same(name):
    """4 knows rope_theta and rope_scaling, 5 rope_parameters."""
    fields = rope_fields(5e6, ROPES[name], 4096)
    of_4 = {"rope_theta": fields["rope_theta"], **(fields["rope_scaling"] or {})}
    assert {"rope_type": "default"} | of_4 == fields["rope_parameters"]
    if (
        name == "yarn"
    ):  # what is usual is left out: releases before it warn of what they do not know
        assert of_4 == YARN | {"rope_theta": 5e6}
        assert fields["max_position_embeddings"] == 131072


def long(folder, dca, length=16384, name="config_1m.json", **more):
    config = written(folder) | {"max_position_embeddings": length, **more}
    (folder / name).write_text(json.dumps(config | {"dual_chunk_attention_config": dca}))
    return hf_config.read_long_config(folder)


@pytest.mark.parametrize("name", ["config_1m.json", "config.json"])
def test_chunks_are_read_where_they_are_asked_for_and_nowhere_else(tmp_path, name):
    found = long(tmp_path, DCA, name=name)
    assert found.rope == RopeConfig(dca_chunk_size=1024, dca_local_size=128)
    assert found.fields["max_position_embeddings"] == 16384
    assert hf_config.read_config(tmp_path).rope == RopeConfig()
    assert hf_config.has_dca(tmp_path) == [str(tmp_path / name)]


def test_a_length_factor_is_that_of_the_longest_text(tmp_path):
    dca = DCA | {"original_max_position_embeddings": 4096, "sparse_attention_enabled": True}
    assert long(tmp_path, dca).rope.dca_scale == 0.1 * math.log(4) + 1
    assert long(tmp_path, dca, length=2048).rope.dca_scale == 1


@pytest.mark.parametrize(
    ("dca", "more", "named"),
    [
        (DCA, {"rope_scaling": YARN, "rope_parameters": None}, "readers of the second ignore the"),
        (DCA | {"chunks": 1}, {}, "valid: a table of chunk_size"),
        ([], {}, "valid: a table of chunk_size"),
        (DCA | {"local_size": 120}, {}, "must be a multiple of 16"),
        (DCA | {"chunk_size": "1024"}, {}, "chunk_size = '1024' is not a number"),
        (DCA, {"hidden_size": 128}, "is of another model than config.json"),
        (
            DCA | {"original_max_position_embeddings": 4096},
            {"max_position_embeddings": None},
            "max_position_embeddings is missing",
        ),
    ],
)
def test_chunks_that_do_not_fit_are_refused_by_file_and_field(tmp_path, dca, more, named):
    with pytest.raises(ConfigError) as raised:
        long(tmp_path, dca, **more)
    assert "config_1m.json" in str(raised.value) and named in str(raised.value)


def test_asking_for_chunks_that_are_nowhere_is_an_error(tmp_path):
    written(tmp_path)
    with pytest.raises(ConfigError, match=r"dual_chunk_attention_config is missing"):
        hf_config.read_long_config(tmp_path)


@pytest.mark.parametrize("scale", [1.0, 1.1386294361119891])
def test_chunks_are_written_beside_and_read_back(tmp_path, scale):
    rope = RopeConfig(dca_chunk_size=1024, dca_local_size=128, dca_scale=scale)
    config = written(tmp_path, rope)
    hf_config.write_long_config(tmp_path, rope, 1_000_000)
    beside = json.loads((tmp_path / "config_1m.json").read_text())
    assert "dual_chunk_attention_config" not in config
    original = beside["dual_chunk_attention_config"]["original_max_position_embeddings"]
    assert original == (0 if scale == 1 else 250_000)
    changed = {name for name in beside if beside[name] != config.get(name)}
    assert changed == {"max_position_embeddings", "dual_chunk_attention_config"}
    found = hf_config.read_long_config(tmp_path).rope
    assert found.dca_scale == pytest.approx(scale, abs=1e-9)
    assert found.without_dca() == RopeConfig() and found.dca_chunk_size == 1024


@pytest.mark.parametrize(
    ("rope", "length", "named"),
    [
        (RopeConfig(), 9999, "rope.dca_chunk_size = 0"),
        (RopeConfig(dca_chunk_size=1024, dca_local_size=128), 1024, "does not exceed"),
        (RopeConfig(dca_chunk_size=1024, dca_local_size=128, dca_rule="paper"), 9999, "rule"),
        (RopeConfig(dca_chunk_size=1024, dca_local_size=128, dca_scale=0.9), 9999, "dca_scale"),
        (RopeConfig(dca_chunk_size=1024, dca_local_size=128, dca_scale=2.5), 9999, "would be 0,"),
        (RopeConfig(dca_chunk_size=1024, dca_local_size=128, dca_scale=99), 9999, "of 1 of it"),
        (RopeConfig(dca_chunk_size=1024, dca_local_size=128, dca_scale=1.9), 9999, "would be 1,"),
        (RopeConfig(4.0, 1024, dca_chunk_size=1024, dca_local_size=128), 9999, "ignore YaRN"),
    ],
)
def test_what_servers_would_compute_otherwise_is_not_written(tmp_path, rope, length, named):
    written(tmp_path)
    with pytest.raises(ConfigError, match=named):
        hf_config.write_long_config(tmp_path, rope, length)
    assert not (tmp_path / "config_1m.json").exists()


def test_a_file_of_chunks_may_not_ask_for_code_either(tmp_path):
    with pytest.raises(ConfigError, match="code of its own"):
        long(tmp_path, DCA, auto_map={"AutoModel": "evil.Model"})


def test_the_length_factor_is_qwens():
    """Of Qwen2.5-7B-Instruct-1M's config.json: 262,144 of 1,010,000 positions."""
    assert length_factor(1_010_000, 262_144) == pytest.approx(1.1348812, abs=1e-7)
    assert length_factor(1000, 262_144) == 1


def test_released_models_stay_plain(tmp_path):
    for preset in PRESETS:
        model = load([], [f"model.preset={preset}", "train.steps=1"]).model
        hf_config.write_config(tmp_path, model, RopeConfig(), 40960, "bfloat16", {})
        found = hf_config.read_config(tmp_path)
        assert (found.model, found.rope) == (model, RopeConfig())
