"""The jobs before and after training: an array that tokenizes, then a curriculum; a conversion."""

import json
import random
import sys
from pathlib import Path

import pytest

from data_prep import tokenizer
from data_prep.inventory import read_inventory

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[2]
SMALL = {"mem-per-cpu": "100M"}
RECIPE = """
[stages.general]
tokens = 2e4
sequence_length = 64
"""


@pytest.fixture
def submit(cluster, tmp_path):
    """submit(*words, **options): a job of a command of mq3, its log in tmp_path."""
    environment = cluster.environment | {"QWEN3_VENV": sys.prefix, "QWEN3_CHECKOUT": str(ROOT)}

    def submit(*words, **options):
        small = {"cpus-per-task": 1, "output": f"{tmp_path}/%j.out"} | options
        asked = [f"--{name}={value}" for name, value in small.items()]
        job = (str(ROOT / "examples/slurm/command.sbatch"), *map(str, words))
        return cluster.submit(*asked, *job, cwd=tmp_path, env=environment)

    return submit


def test_an_array_tokenizes_and_then_a_curriculum_is_mixed(cluster, submit, tmp_path):
    words = random.Random(0)
    texts = [" ".join(words.choices(["the", "cat", "sat", "on"], k=200)) for _ in range(200)]
    tokenizer.train(texts, 300, tmp_path / "tokenizer")
    for part in range(4):
        rows = (json.dumps({"text": text, "source": "cats"}) for text in texts[part::4])
        (tmp_path / f"part{part}.jsonl").write_text("\n".join(rows))
    documents, out = sorted(tmp_path.glob("*.jsonl")), tmp_path / "tokens"
    # Small groups, so that each task has some.
    asked = (*documents, "--out", out, "--tokenizer", tmp_path / "tokenizer", "--group-gb=4e-5")
    tokenize = submit("data", "tokenize", *asked, array="0-1", **SMALL)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    mix = submit(
        *("data", "mix", out, "--recipe", tmp_path / "recipe.toml", "--no-page"),
        dependency=f"afterok:{tokenize}",
        **SMALL,
    )
    cluster.wait(mix)
    assert sum(cell.documents for cell in read_inventory(out).cells) == 200
    assert [*json.loads((out / "curriculum.json").read_text())["stages"]] == ["general"]
    logs = [path.read_text() for path in tmp_path.glob("*.out")]
    assert len(logs) == 3 and any("inventory.parquet" in log for log in logs)


def test_a_conversion_that_cannot_be_fails_its_job(cluster, submit, tmp_path):
    job = submit("convert", "to-hf", tmp_path / "nothing", tmp_path / "out", **SMALL)
    cluster.wait(job, "FAILED")
    assert cluster.job(job)["ExitCode"] == "2:0"
    assert "no checkpoint of ours" in (tmp_path / f"{job}.out").read_text()
