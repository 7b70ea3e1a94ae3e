"""The job scripts of examples/slurm: sound as shell, alike, and fit for their model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_qwen3 import config as settings
from megatron_qwen3.cli import launch, launch_sbatch
from megatron_qwen3.planner import allocation as planner
from megatron_qwen3.planner import hardware
from megatron_qwen3.planner.allocation import Allocation

ROOT = Path(__file__).resolve().parents[2]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
FOLDER = ROOT / "examples" / "slurm"
SCRIPTS = sorted([*FOLDER.glob("*.sbatch"), *FOLDER.glob("*.sh")])
MODELS = sorted(path.stem for path in (ROOT / "examples/models").glob("qwen3_*.toml"))


ROW = re.compile(r"^\| `(qwen3_\S+)\.toml` \| (\d+) \| (\d+) \| (.*) \|$", re.MULTILINE)
TABLE = ROW.findall((FOLDER / "README.md").read_text())
SIZES = {model: (int(nodes), int(gpus), layout) for model, nodes, gpus, layout in TABLE}


def name_of(path):
    return path.name


def asked(path):
    """The options on a script's #SBATCH lines."""
    lines = re.findall(r"^#SBATCH (\S+)$", path.read_text(), re.MULTILINE)
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_bash_and_shellcheck_find_nothing(path):
    subprocess.run(["bash", "-n", path], check=True)
    found = subprocess.run(
        [SHELLCHECK, "--external-sources", path], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_model_has_a_size():
    assert sorted(SIZES) == MODELS


@pytest.mark.parametrize("model", SIZES)
def test_a_models_size_holds_every_stage_in_the_layout_that_stands_beside_it(model):
    nodes, gpus, told = SIZES[model]
    options = asked(FOLDER / "train.sbatch")
    allocation = Allocation(
        nodes=nodes,
        gpus_per_node=int(options["--ntasks-per-node"]),
        nvlink_domain=int(options["--ntasks-per-node"]),
        gpu=hardware.load("h100"),
        time_limit_seconds=launch_sbatch.parse_time(options["--time"]),
        save_seconds=int(options["--signal"].removeprefix("B:USR1@")),
    )
    models = ROOT / "examples/models"
    for stage in launch.STAGES:
        files = (ROOT / f"examples/stages/{stage}.toml", models / f"{model}.toml")
        config = settings.load(files, [])
        assert planner.faults(config, allocation) == []
        assert planner.advice(config, allocation) == []
        assert (gpus, told) == (allocation.world_size, layout_of(config, gpus))
    config = settings.load((*files, models / f"long/{model}.toml"), [])  # of the last stage
    assert planner.faults(config, allocation) == []


def layout_of(config, gpus):
    """As the table tells it: the sizes other than 1, in its order."""
    asked = config.parallel
    data = gpus // (asked.tensor * asked.pipeline)
    sizes = {"tensor": asked.tensor, "pipeline": asked.pipeline, "data": data}
    if list(sizes.values()) == [1, 1, data]:
        return "all of them data parallel"
    told = " × ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)
    copies = gpus // (asked.pipeline * asked.expert * asked.expert_tensor)
    return told + (f", expert {asked.expert} × {copies} copies" if asked.expert > 1 else "")
