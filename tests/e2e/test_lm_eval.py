"""An exported model runs in the field's harness, lm-eval, on a task of local files."""

import json
import os
import subprocess
import sys

import pytest
import tiny
import torch

from megatron_qwen3.chat_template import write_chat_template
from megatron_qwen3.convert.stream import from_hf, to_hf

transformers = pytest.importorskip("transformers")
pytest.importorskip("lm_eval")

ROWS = [
    {"question": "a b", "choices": [" c", " abc", " ab"], "gold": 1},
    {"question": "abc a", "choices": [" b", " c"], "gold": 0},
    {"question": "c c", "choices": [" a", " abc"], "gold": 1},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny model of transformers, and the same after it was ours and was exported."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save(folder / "hf")
    from_hf(folder / "hf", folder / "ours")
    to_hf(folder / "ours", folder / "exported")
    if (folder / "exported" / "tokenizer_config.json").exists():
        write_chat_template(folder / "exported")
    return folder / "hf", folder / "exported"


def log_likelihood(folder, text, more):
    """Of `more` after `text`, by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = tokenizer(text)["input_ids"]
    ids = torch.tensor([tokenizer(text + more)["input_ids"]])
    with torch.no_grad():
        log_probs = model(ids).logits.log_softmax(-1)[0]
    places = range(len(given), ids.shape[1])
    return sum(float(log_probs[place - 1, ids[0, place]]) for place in places)


@pytest.mark.slow
def test_an_exported_model_runs_in_lm_eval_with_the_log_likelihoods_of_its_origin(models, tmp_path):
    origin, exported = models
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "toy.yaml").write_text(TASK.format(name="toy_choice", file=file))
    options = {
        "--model": "hf",
        "--model_args": f"pretrained={exported},dtype=float32",
        "--tasks": "toy_choice",
        "--include_path": tasks,
        "--device": "cpu",
        "--batch_size": 2,
        "--output_path": tmp_path / "out",
    }
    words = [str(word) for pair in options.items() for word in pair]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "lm_eval", *words, "--log_samples"]
    done = subprocess.run(
        command, env=os.environ | offline, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    (samples,) = (tmp_path / "out").rglob("samples_toy_choice_*.jsonl")
    rows = sorted(map(json.loads, samples.open()), key=lambda row: row["doc_id"])
    right = 0
    for row, asked in zip(rows, ROWS, strict=True):
        wanted = [log_likelihood(origin, asked["question"], one) for one in asked["choices"]]
        found = [float(response[0]) for response in row["filtered_resps"]]
        assert found == pytest.approx(wanted, abs=1e-4)
        right += wanted.index(max(wanted)) == asked["gold"]
    accuracy = json.loads(results.read_text())["results"]["toy_choice"]["acc,none"]
    assert accuracy == pytest.approx(right / len(ROWS))
