"""Ways of reading beyond the trained length, and pass keys in long texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.pages import reading as pages
from megatron_qwen3.reading.passkey import Words, make
from megatron_qwen3.reading.ways import WAYS, as_overrides, settings_of, usual
from megatron_qwen3.settings_rope import RopeConfig

MODEL = ("model.preset=tiny-dense", "train.steps=1")


PLAIN = RopeConfig()
STRETCHED = RopeConfig(yarn_factor=4, yarn_original_length=64, yarn_beta_fast=20)


def encode(text):
    return [ord(letter) for letter in text]


@given(trained=st.integers(17, 40_000), times=st.sampled_from([0.5, 1, 3.7, 4]))
@pytest.mark.parametrize("way", WAYS)
def test_every_way_has_settings_that_a_run_takes(way, trained, times):
    for own in (PLAIN, STRETCHED):
        rope = settings_of(way, trained, int(trained * times), own)
        assert load([], [*MODEL, *as_overrides(rope)]).rope == rope


def test_one_length_factor_reads_all_lengths_and_is_applied_once():
    yarn, dca, both = (settings_of(way, 32_768, 131_072, PLAIN) for way in ("yarn", "dca", "both"))
    assert yarn.yarn_factor == both.yarn_factor == 4
    assert dca.dca_scale == pytest.approx(1.138629, abs=1e-6)  # YaRN's for a factor of 4
    assert both.dca_scale == 1
    assert (dca.dca_chunk_size, dca.dca_local_size) == (32_768, 4_096)


def test_a_text_no_longer_than_was_trained_needs_no_factor():
    assert settings_of("dca", 256, 256, PLAIN).dca_scale == 1
    assert settings_of("yarn", 256, 128, PLAIN).yarn_factor == 1


def test_ways_of_a_model_that_was_trained_with_yarn_go_on_from_its_own():
    def of(way, longest):
        return settings_of(way, 256, longest, STRETCHED)

    assert usual(PLAIN) == ("plain", "yarn", "dca", "both") and usual(STRETCHED)[0] == "own"
    assert of("own", 1024) == STRETCHED and of("plain", 1024) == PLAIN
    assert of("yarn", 128) == of("yarn", 256) == STRETCHED  # not one that it was never trained with
    yarn, both, dca = of("yarn", 1024), of("both", 1024), of("dca", 1024)
    assert (yarn.yarn_factor, yarn.yarn_original_length, yarn.yarn_beta_fast) == (16, 64, 20)
    assert both.without_dca() == yarn and dca.without_dca() == STRETCHED
    assert dca.dca_chunk_size == both.dca_chunk_size == 256 and dca.dca_scale == 1


def test_a_model_too_short_for_chunks_is_refused():
    with pytest.raises(ConfigError, match="16 positions is too short .* above 16"):
        settings_of("dca", 16, 64, PLAIN)


WORDS = Words("[{key}]", "<{key}", 4)


@given(length=st.integers(20, 300), count=st.integers(1, 12))
def test_a_prompt_is_of_its_length_says_its_key_once_and_ends_with_it(length, count):
    texts = [encode("a" * 400), encode("b" * 400)]
    prompts = make(texts, length, count, WORDS, encode, seed=1)
    for number, prompt in enumerate(prompts):
        text = "".join(map(chr, prompt.ids))
        key = text[-prompt.answer :]
        assert len(text) == length and len(key) == 4 and key.isdigit()
        assert text.count(f"[{key}]") == 1 and text.endswith(f"<{key}")
        assert text.index("[") == int(prompt.depth * (length - 11))
        assert set(text) - set("0123456789[]<") == {"ab"[number % 2]}


def test_braces_in_the_words_are_text():
    words = Words('{"pass": "{key}"}', "{}{0}{key}", 4)
    words.check()
    (prompt,) = make([encode("a" * 99)], 60, 1, words, encode, seed=1)
    text = "".join(map(chr, prompt.ids))
    key = text[-4:]
    assert f'{{"pass": "{key}"}}' in text and text.endswith(f"{{}}{{0}}{key}")


def test_keys_stand_at_all_depths():
    depths = [prompt.depth for prompt in make([[1] * 99], 99, 4, WORDS, encode, seed=1)]
    assert depths == [0.125, 0.375, 0.625, 0.875]


def test_words_that_hide_the_key_and_lengths_without_room_are_refused():
    with pytest.raises(ConfigError, match="--key-said .* 0 times"):
        Words(said="no key").check()
    with pytest.raises(ConfigError, match="--key-asked .* does not end with"):
        Words(asked="{key}, is it?").check()
    with pytest.raises(ConfigError, match="12 tokens has no room .* which take 11"):
        make([[1] * 99], 12, 1, WORDS, encode, seed=1)


def test_the_page_says_what_its_columns_are_and_which_ways_are_the_same(tmp_path):
    row = {
        "nats": [1.0] * 8,
        "last_quarter": 1.0,
        "keys": 0.5,
        "found": [[0.1, True], [0.9, False]],
    }
    same, other = vars(settings_of("plain", 64, 64, PLAIN)), vars(settings_of("dca", 64, 64, PLAIN))
    content = {
        "model": "m",
        "trained": 64,
        "texts": 1,
        "ways": {"plain": same, "yarn": same, "dca": other},
        "rows": [{"way": way, "length": 64, **row} for way in ("plain", "yarn", "dca")],
    }
    pages.write(content, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "yarn has the settings of plain" in html and "dca has the settings" not in html
    assert "trained at 64; 1 text" in html and "1 texts" not in html
    header, *_ = pages._rows(content)
    said = " ".join(pages.COLUMNS)
    assert {"last quarter, nats", "change %", "keys %"} <= {*header}
    assert all(f"{name}:" in said for name in ("last quarter, nats", "change %", "keys %"))
