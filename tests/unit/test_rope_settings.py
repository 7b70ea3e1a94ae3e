"""Settings of long texts: valid pairs, and errors with the way out."""

import pytest

from megatron_qwen3 import validate_rope
from megatron_qwen3.config import Config, ConfigError, load, to_toml
from megatron_qwen3.settings_rope import RopeConfig

TINY = ["model.preset=tiny-dense", "train.steps=1"]
YARN = ["rope.yarn_factor=4", "rope.yarn_original_length=64"]
DCA = ["rope.dca_chunk_size=64", "rope.dca_local_size=16"]
VLLM = ["run.mode=rl", "rollouts.engine=vllm", 'rollouts.tasks=[{name="a",path="x"}]']


def error_of(pairs):
    with pytest.raises(ConfigError) as raised:
        load([], [*TINY, *pairs])
    return str(raised.value)


@pytest.mark.parametrize("value", ["nan", "inf", "0.5", "-inf", "2e9"])
def test_a_number_out_of_range_has_one_cause(value):
    assert error_of([YARN[1], f"rope.yarn_factor={value}"]).count("\n") == 0


def test_settings_that_are_hardly_meant_are_noted():
    reach = RopeConfig(yarn_factor=2, yarn_original_length=64)
    (note,) = validate_rope.notes(reach, 1024)
    assert "reaches 128 positions, fewer than 1,024; rope.yarn_factor = 16 reaches them" in note
    chunks = RopeConfig(dca_chunk_size=64, dca_local_size=16)
    (note,) = validate_rope.notes(chunks, 64)
    assert "rope.dca_chunk_size = 64: within 64 positions attention is plain" in note
    assert not [*validate_rope.notes(reach, 128), *validate_rope.notes(chunks, 65)]
    assert not [*validate_rope.notes(RopeConfig(), 1)]


def test_a_run_is_plain_unless_told():
    assert load([], TINY).rope == RopeConfig()


def test_settings_of_before_the_table_are_plain(tmp_path):
    text = to_toml(load([], TINY))
    start = text.index("[rope]")
    old = tmp_path / "config.toml"
    old.write_text(text[:start] + text[text.index("[parallel]") :], encoding="utf-8")
    assert load([old]) == load([], TINY)


def test_the_table_is_written_and_read_alike(tmp_path):
    config = load([], [*TINY, *YARN, "rope.yarn_truncate=false", *DCA, "rope.dca_rule=paper"])
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert load([tmp_path / "config.toml"]) == config != load([], TINY)


def test_yarn_and_chunks_go_together():
    rope = load([], [*TINY, *YARN, *DCA, "rope.yarn_attention_factor=1", "rope.dca_scale=1.1"]).rope
    assert (rope.yarn_factor, rope.dca_chunk_size, rope.dca_scale) == (4, 64, 1.1)


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        (["rope.yarn_factor=4"], "rope.yarn_factor = 4 needs rope.yarn_original_length"),
        (["rope.yarn_factor=0.5"], "rope.yarn_factor = 0.5 must be at least 1"),
        ([YARN[1]], "rope.yarn_original_length = 64, but rope.yarn_factor = 1"),
        (["rope.yarn_truncate=false"], "rope.yarn_truncate = false, but rope.yarn_factor = 1"),
        ([*YARN, "rope.yarn_beta_fast=1"], "rope.yarn_beta_fast = 1 must be above rope.yarn_bet"),
        ([*YARN, "rope.yarn_beta_slow=0"], "rope.yarn_beta_slow = 0.0 must be above 0"),
        (["rope.yarn_factor=4", "rope.yarn_original_length=6"], "must be above 2π times rope.yar"),
        ([*YARN, "model.rope_theta=1"], "model.rope_theta = 1 must be above 1 with rope.yarn_f"),
        ([*YARN, "rope.yarn_attention_factor=-1"], "must be at least 0"),
        ([*YARN, "rope.yarn_attention_factor=inf"], "must be finite"),
        ([*YARN, "rope.yarn_attention_factor=nan"], "must be at least 0"),
        (["rope.dca_local_size=16"], "rope.dca_local_size = 16, but rope.dca_chunk_size = 0"),
        (["rope.dca_rule=paper"], 'rope.dca_rule = "paper", but rope.dca_chunk_size = 0'),
        (["rope.dca_scale=1.1"], "rope.dca_scale = 1.1, but rope.dca_chunk_size = 0"),
        (["rope.dca_rule=vllm"], "is not one of code, paper"),
        ([DCA[0]], "rope.dca_local_size = 0 make chunks of 64 places"),
        ([DCA[0], "rope.dca_local_size=48"], "valid: a dca_local_size of 16 to 32 in steps of 16"),
        ([DCA[0], "rope.dca_local_size=20"], "chunks of 44 places, which must be a multiple of 16"),
        (["rope.dca_chunk_size=40", "rope.dca_local_size=9"], "valid: a dca_local_size of 8"),
        (["rope.dca_chunk_size=16", "rope.dca_local_size=8"], "a dca_chunk_size of 32 or more"),
        ([*YARN, *DCA, "rope.dca_scale=1.2"], "both scale the scores; set rope.dca_scale = 1"),
        ([*VLLM, *DCA], 'rollouts.engine = "vllm" with rope.dca_chunk_size = 64'),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_way_out(pairs, named):
    assert named in error_of(pairs)


@pytest.mark.parametrize("size", [32, 40, 64, 100, 8191, 8192])
def test_local_sizes_that_are_told_as_valid_are_all_that_are_taken(size):
    def taken(local):
        try:
            load([], [*TINY, f"rope.dca_chunk_size={size}", f"rope.dca_local_size={local}"])
        except ConfigError:
            return False
        return True

    text = error_of([f"rope.dca_chunk_size={size}", f"rope.dca_local_size={size - 1}"])
    numbers = [int(w) for w in text.rpartition("dca_local_size of ")[2].split() if w.isdigit()]
    first, last = numbers[0], numbers[1] if len(numbers) > 1 else numbers[0]
    told = set(range(first, last + 1, 16))
    tried = {*range(0, 80), *told, last + 16, size // 2 + 1} if size > 200 else range(size)
    assert {local for local in tried if taken(local)} == told & set(tried)


def test_the_defaults_of_the_table_are_plain_attention():
    assert (Config().rope.yarn_factor, Config().rope.dca_chunk_size) == (1, 0)
