"""YaRN and other bases are transformers': its files' frequencies and logits, and its own here."""

import pytest
import torch
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.convert.hf_rope import rope_values
from megatron_qwen3.model.rope import RotaryTables, frequencies
from megatron_qwen3.toml import emit
from tests import golden
from tests.hashed import logits_of, token_ids

transformers = pytest.importorskip("transformers")

FILE = golden.read("yarn.json") or {"frequencies": [], "models": []}
RUNS = [(case, run) for case in FILE["models"] for run in case["runs"]]
SHAPES = {
    "dense": ("model.preset=tiny-dense", "model.ffn_hidden_size=128", "model.tie_embeddings=false"),
    "moe": ("model.preset=tiny-moe", "model.expert_ffn_hidden_size=32"),
}
needs_file = pytest.mark.skipif(not RUNS, reason=f"yarn.json is not in {golden.folder()}")
NAMES = {"original": "original_max_position_embeddings"}
KEPT = ("factor", "original", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim")


def theirs_of(case):
    """A case's rope_parameters."""
    given = {NAMES.get(n, n): case[n] for n in (*KEPT, "attention_factor") if n in case}
    return {"rope_type": "yarn", "rope_theta": case["rope_theta"], **given}


def settings_of(rope_parameters):
    """The same as key=value, as config.json is read."""
    values = rope_values("config.json", {"rope_parameters": rope_parameters})
    return [f"{name}={emit(value)}" for name, value in values.items()]


def ours_of(case):
    return load([], ["model.preset=tiny-dense", "train.steps=1", *settings_of(theirs_of(case))])


def of_transformers(case):
    """Frequencies and attention factor that the installed release computes."""
    config = transformers.Qwen3Config(
        head_dim=case["head_dim"],
        max_position_embeddings=round(case["factor"] * case["original"]),
        rope_parameters=theirs_of(case),
    )
    return transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](config)


@needs_file
@pytest.mark.parametrize("case", FILE["frequencies"], ids=lambda case: f"{case['factor']:g}")
def test_frequencies_have_the_bits_of_transformers(case):
    config, (expected, factor) = ours_of(case), of_transformers(case)
    found = frequencies(case["head_dim"], case["rope_theta"], config.rope)
    assert torch.equal(found, expected)
    assert config.rope.attention_factor == factor
    stored = torch.tensor(case["inv_freq_float32"])
    torch.testing.assert_close(found, stored, rtol=2e-7, atol=0)
    wide = torch.tensor(case["inv_freq_float64"], dtype=torch.float64)
    torch.testing.assert_close(found.double(), wide, rtol=2e-7, atol=0)
    assert factor == pytest.approx(case["attention_factor_result"], abs=1e-8)


def test_plain_frequencies_of_any_base_have_the_bits_of_transformers():
    for base in (1e4, 1e6, 5e6, 1e7):
        config = transformers.Qwen3Config(
            head_dim=128, rope_parameters={"rope_type": "default", "rope_theta": base}
        )
        embedding = transformers.models.qwen3.modeling_qwen3.Qwen3RotaryEmbedding
        expected, _ = embedding.compute_default_rope_parameters(config)
        assert torch.equal(frequencies(128, base), expected)


@needs_file
@pytest.mark.parametrize("case", FILE["frequencies"], ids=lambda case: f"{case['factor']:g}")
def test_tables_are_transformers_cosines_and_sines(case):
    """Far out, too, where frequencies that differ by rounding would show."""
    config = transformers.Qwen3Config(
        head_dim=case["head_dim"],
        max_position_embeddings=round(case["factor"] * case["original"]),
        rope_parameters=theirs_of(case),
    )
    embedding = transformers.models.qwen3.modeling_qwen3.Qwen3RotaryEmbedding(config)
    place_S = torch.tensor([0, 1, 63, 4095, 32767, 131071, 1 << 20])
    expected = embedding(torch.zeros(1), place_S[None])
    tables = RotaryTables(case["head_dim"], case["rope_theta"], ours_of(case).rope)
    for found, wanted in zip(tables.at(place_S[:, None]), expected, strict=True):
        assert torch.equal(found[:, 0, 0], wanted[0])


def model_settings(case):
    base = ["model.num_layers=2", "model.vocab_size=256", "train.steps=1", "train.precision=fp32"]
    return [*SHAPES[case["model"]], *base, *settings_of(case["rope_parameters"])]


@pytest.fixture(scope="module")
def ours():
    texts = [(run["length"], run["token_seed"]) for _, run in RUNS]
    return run_ranks(logits_of, 1, [model_settings(case) for case, _ in RUNS], texts)[0]


@needs_file
@pytest.mark.parametrize(
    "number",
    range(len(RUNS)),
    ids=[f"{case['model']}: {case['label']}, {run['length']}" for case, run in RUNS],
)
def test_logits_below_at_and_past_the_original_length_are_transformers(ours, number):
    (_, run), logits_SV = RUNS[number], ours[number]
    found = logits_SV[run["positions"]][:, run["vocab_ids"]]
    torch.testing.assert_close(found, torch.tensor(run["logits"]), rtol=0, atol=1e-4)
    sums = logits_SV.logsumexp(-1)[run["positions"]]
    torch.testing.assert_close(sums, torch.tensor(run["logsumexp"]), rtol=0, atol=1e-4)
    ids = token_ids(run["length"], run["token_seed"], logits_SV.shape[1])
    nll = torch.nn.functional.cross_entropy(logits_SV[:-1], ids[1:])
    assert float(nll) == pytest.approx(run["mean_next_token_nll"], abs=1e-5)
