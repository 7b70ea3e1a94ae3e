"""Jobs in a container on a real SLURM, by one option: ranks see mounted folders alone.

SLURM is real; Apptainer, and Pyxis as srun's plugin, are stood in by a namespace of bubblewrap
(tests/containers/stand_in.sh), in which /tmp is empty but for mounted folders.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.indexed import IndexedWriter
from tests.containers import runtimes

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(runtimes.why_not()), reason=runtimes.why_not()),
]
STEPS = 3


@pytest.fixture
def numbers(tmp_path):
    """A source of tokens in a folder of its own."""
    (tmp_path / "some data").mkdir()
    with IndexedWriter(tmp_path / "some data/numbers", np.uint16) as writer:
        for first in range(40):
            writer.add_document((first + np.arange(100)) % 512)
    return tmp_path / "some data/numbers"


@pytest.mark.parametrize("name", ["apptainer", "srun"])
def test_ranks_of_two_nodes_train_in_the_image(cluster, tmp_path, numbers, name):
    image = runtimes.image(tmp_path / ("an image.sif" if name == "apptainer" else "image.sqsh"))
    programs = runtimes.put(tmp_path / "bin", name)
    path = f"{programs}:{cluster.environment['PATH']}"
    (tmp_path / "site.sh").write_text(f"export PATH='{programs}':$PATH\n")
    settings = ["model.preset=tiny-moe", "data.sequence_length=32", "data.held_out=0"]
    settings += [f'data.sources=[{{name="numbers", path="{numbers}"}}]', f"train.steps={STEPS}"]
    settings += ["train.precision=fp32", "train.global_batch=2", "log.tensorboard=false"]
    settings += ["run.device=cpu", f"run.dir={tmp_path}/the runs"]
    options = ["--nodes=2", "--gpus-per-node=1", "--gres=none", "--cpus-per-task=1"]
    options += ["--time=10:00", "--save-seconds=60", f"--setup={tmp_path}/site.sh"]
    words = [sys.executable, "tools/launch.py", "train", *settings, *options]
    real = cluster.run("which", "srun")
    told = cluster.run(
        *(*words, f"--container={image}"),
        cwd=ROOT,
        env=cluster.environment | {"PATH": path, "REAL_SRUN": real, "OMP_NUM_THREADS": "1"},
    )
    job = told.split()[0]
    folder = tmp_path / "the runs/run"
    log = folder / f"slurm-{job}.out"
    try:
        cluster.wait(job)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()[-8000:]}") from None
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3]
    assert "2 ranks on 127.0.0.[11-12]" in log.read_text()
    assert log.read_text().count(f"inside {image}\n") == 2
