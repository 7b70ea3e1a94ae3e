"""examples/long_context.sh from the first text to the page, with a really trained model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Of results.json, by way and length. The checkout stays free of the example's runs."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("examples", "tools", "data_prep", "megatron_qwen3"):
        (folder / name).symlink_to(REPOSITORY / name)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", str(folder / "examples/long_context.sh")],
        env=os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY)},
        check=True,
    )
    results = json.loads((folder / "runs/long_context/reading/results.json").read_text())
    return {(row["way"], row["length"]): row for row in results["rows"]}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_dual_chunk_attention_reads_four_times_the_trained_length_and_plain_rotary_does_not(rows):
    losses = {key: row["last_quarter"] for key, row in rows.items()}
    assert losses["plain", 1024] >= 1.5 * losses["plain", 256]
    assert losses["dca", 1024] <= 1.05 * losses["dca", 256]
    assert rows["plain", 1024]["keys"] < 0.1 < 0.8 < rows["dca", 1024]["keys"]
