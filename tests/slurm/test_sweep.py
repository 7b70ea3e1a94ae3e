"""A scaling study through SLURM: its arrays run every point, and the report reads them."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.indexed import IndexedWriter

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[2]
STUDY = """
dir = "{folder}/sweep"
settings = [
    "model.preset=tiny-dense", "data.sequence_length=32", "data.held_out=0", "run.device=cpu",
    "train.precision=fp32", "log.tensorboard=false",
    'data.sources=[{{name = "numbers", path = "{folder}/numbers"}}]',
]
gpus = [1, 2]
scaling = ["weak"]
sequences_per_gpu = 2
steps = 4
warm_up_steps = 1
gpus_per_node = 1
sbatch = ["--cpus-per-task=1", "--gpus-per-node=0"]
[models]
dense = []
small = ["model.hidden_size=32"]
[layouts]
data = []
"""


def test_the_arrays_of_a_study_run_every_point(cluster, tmp_path):
    with IndexedWriter(tmp_path / "numbers", np.uint16) as writer:
        for first in range(100):
            writer.add_document((first + np.arange(100)) % 512)
    study = tmp_path / "study.toml"
    study.write_text(STUDY.format(folder=tmp_path))
    command = [sys.executable, "tools/scaling_study.py", "sweep", str(study)]
    environment = cluster.environment | {"QWEN3_VENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    options = {"cwd": ROOT, "env": os.environ | environment}
    submitted = cluster.run(*command, "--submit", **options)
    for job in [line.split()[-1] for line in submitted.splitlines() if "Submitted" in line]:
        for task in (0, 1):
            cluster.wait(f"{job}_{task}")
    (dense, small) = json.loads(cluster.run(*command, "--report", "--json", **options))["curves"]
    for curve in (dense, small):
        assert [row["gpus"] for row in curve["rows"]] == [1, 2]
        assert all(row["step_seconds"] > 0 for row in curve["rows"])
