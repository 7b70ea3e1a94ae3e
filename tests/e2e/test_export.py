"""A model trained here continues texts in transformers with the same tokens."""

import json
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from test_train import arguments, folder, run_stage  # noqa: F401

from megatron_qwen3.convert.stream import to_hf
from megatron_qwen3.generate.__main__ import main
from megatron_qwen3.training import checkpoint

transformers = pytest.importorskip("transformers")

QUICKSTART = Path(__file__).parents[2] / "runs" / "quickstart"
NEW = 32


def ours(source, prompts, scratch):
    """The likeliest continuation of each prompt, as the command line writes it."""
    lines = scratch / "prompts.jsonl"
    lines.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    out = scratch / "out.jsonl"
    options = ["--file", lines, "--out", out, "--temperature", 0, "--max-new-tokens", NEW]
    (status,) = run_ranks(main, 1, [str(word) for word in (source, *options)])
    assert status == 0
    return [
        json.loads(line)["completion"]["tokens"]
        for line in out.read_text(encoding="utf-8").splitlines()
    ]


def theirs(hf_folder, prompts):
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf_folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(hf_folder, dtype=torch.float32)
    ends = [tokenizer.convert_tokens_to_ids(end) for end in ("<|im_end|>", "<|endoftext|>")]
    continued = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        mode = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": ends}
        (row,) = model.generate(**ids, **mode)
        continued.append(row[ids["input_ids"].shape[1] :].tolist())
    return continued


def test_a_run_trained_on_two_ranks_goes_on_in_transformers_with_the_same_tokens(
    folder,  # noqa: F811
    tmp_path,
):
    settings = arguments(folder, "one", tmp_path, "parallel.expert=2")
    assert run_ranks(run_stage, 2, settings) == [0, 0]
    trained = checkpoint.find(str(tmp_path / "one"))
    to_hf(trained, tmp_path / "hf")
    prompts = ["the cat", "sat on the", "12 13 14"]
    expected = theirs(tmp_path / "hf", prompts)
    assert ours(trained, prompts, tmp_path) == expected
    assert len(max(expected, key=len)) == NEW


@pytest.mark.skipif(not (QUICKSTART / "hf").is_dir(), reason="make quickstart has not run")
def test_what_the_quickstart_trained_goes_on_in_transformers_with_the_same_tokens(tmp_path):
    prompts = ["The river ", "def main(", "今天"]
    trained = QUICKSTART / "stage_3_long_context"
    assert ours(trained, prompts, tmp_path) == theirs(QUICKSTART / "hf", prompts)
