"""Flags: every turn has the mode that the last flag before it asks for, and shares are as set."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3.chat import soft_switch, thinks
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.building.flags import Answered, FlagSettings, fused
from megatron_qwen3.posttrain.building.queries import Query
from megatron_qwen3.posttrain.dialogs.samples import Choices, decoder, samples_of
from megatron_qwen3.posttrain.generators.answers import Answer

HISTORY = [
    {"role": "user", "content": "before"},
    {"role": "assistant", "content": "yes"},
]
THOUGHT = [
    {"role": "user", "content": "think first"},
    {"role": "assistant", "content": "thought", "reasoning_content": "why"},
]
DECODE = decoder("dialogs").decode


def sample(number, mode, before=(), system="", text=""):
    messages = [{"role": "system", "content": system}] if system else []
    messages += [*before, {"role": "user", "content": text or f"question {number}"}]
    query = Query(f"q{number}", tuple(messages), f"f:{number}", "math", "s")
    says = f"<think>\nthought {number}\n</think>\n\nanswer {number}"
    answer = Answer(says if mode == "thinking" else f"answer {number}", "stop")
    return Answered(query, mode, lambda: answer)


def many(count, modes=("thinking", "non-thinking"), **more):
    return [sample(k, modes[k % len(modes)], **more) for k in range(count)]


shares = st.sampled_from([0.0, 0.3, 1.0])
samples = st.lists(
    st.tuples(
        st.sampled_from(["thinking", "non-thinking"]),
        st.sampled_from([(), tuple(HISTORY), tuple(THOUGHT), (*HISTORY, *THOUGHT)]),
        st.sampled_from(["", "You are kind."]),
        st.sampled_from(["", "see /usr/thinker", "ends with a slash /", "a.\n", "http://x/think"]),
    ),
    max_size=12,
)


@given(samples, shares, shares, shares, shares, st.integers(0, 5))
def test_every_answer_is_in_the_mode_that_the_last_flag_asks_for(
    drawn, flagged, system, joined, several, seed
):
    made = [sample(k, *one) for k, one in enumerate(drawn)]
    settings = FlagSettings(flagged, system, joined, 3, several, seed)
    rows = list(fused(made, settings))
    seen = []
    for row in rows:
        messages, modes = row["messages"], set()
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            mode = "thinking" if thinks(messages[:place]) else "non-thinking"
            modes.add(mode)
            if not message["content"].startswith("answer"):  # of the query's own history
                assert mode == ("thinking" if message["content"] == "thought" else "non-thinking")
                continue
            number = message["content"].removeprefix("answer ")
            seen.append((int(number), mode))
            assert message["reasoning_content"] == (
                f"thought {number}" if mode == "thinking" else ""
            )
            if mode == "non-thinking":  # never unasked: thinking is what a model does by itself
                assert soft_switch(messages[:place]) is False
        assert row.get("mode") == (next(iter(modes)) if len(modes) == 1 else None)
        assert [m["role"] for m in messages].count("system") <= 1
        trained = samples_of(DECODE(json.dumps(row).encode()), Choices())
        assert {sample.mode for sample in trained} == modes
        assert not any(sample.remark for sample in trained)
    assert sorted(seen) == [(k, one[0]) for k, one in enumerate(drawn)]


def test_the_same_samples_settings_and_seed_give_the_same_dialogs():
    made, settings = many(50), FlagSettings(seed=3)
    rows = json.dumps(list(fused(made, settings)))
    assert json.dumps(list(fused(made[::-1], settings))) == rows
    assert json.dumps(list(fused(made, FlagSettings(seed=4)))) != rows


def test_a_sample_more_does_not_change_the_flags_of_those_that_stand_alone():
    settings = FlagSettings(joined=0.0)
    before = {row["id"]: row for row in fused(many(40), settings)}
    after = {row["id"]: row for row in fused(many(41), settings)}
    assert len(after) == 41 and all(after[name] == row for name, row in before.items())


def places(rows):
    texts = [{m["role"]: m["content"] for m in row["messages"]} for row in rows]
    return {
        "system": sum("/" in text.get("system", "") for text in texts),
        "user": sum("think" in text["user"] for text in texts),
        "several": sum(text["user"].count("think") > 1 for text in texts),
    }


def test_shares_are_those_of_the_settings():
    settings = FlagSettings(0.6, 0.25, 0.0, 2, 0.4)
    thinking = places(fused(many(4000, ["thinking"]), settings))
    assert thinking["system"] + thinking["user"] == pytest.approx(0.6 * 4000, abs=130)
    assert thinking["system"] == pytest.approx(0.25 * 0.6 * 4000, abs=90)
    assert thinking["several"] == pytest.approx(0.4 * 0.6 * 0.75 * 4000, abs=110)
    plain = places(fused(many(4000, ["non-thinking"]), settings))
    assert plain["system"] + plain["user"] == 4000
    rows = list(fused(many(4000), FlagSettings(joined=0.3, most_turns=4)))
    turns = [sum(m["role"] == "user" for m in row["messages"]) for row in rows]
    assert sum(t for t in turns if t > 1) == pytest.approx(0.3 * 4000, abs=120)
    assert set(turns) <= {1, 2, 3, 4} and {2, 3, 4} <= set(turns)
    assert any("mode" not in row for row in rows)


@pytest.mark.parametrize(
    "values", [{"joined": 1.1}, {"most_turns": 1}, {"system_flags": -0.1}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ConfigError, match=f"{next(iter(values))} = "):
        FlagSettings(**values)
