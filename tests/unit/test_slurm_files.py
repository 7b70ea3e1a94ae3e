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


def name_of(path):
    return path.name


def asked(path):
    """The options on a script's #SBATCH lines."""
    lines = re.findall(r"^#SBATCH (\S+)$", path.read_text(), re.MULTILINE)
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def test_no_script_is_forgotten():
    assert {f"{name}.sbatch" for name in MODELS} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_bash_and_shellcheck_find_nothing(path):
    subprocess.run(["bash", "-n", path], check=True)
    found = subprocess.run(
        [SHELLCHECK, "--external-sources", path], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("model", MODELS)
def test_a_models_job_holds_every_stage(model):
    options = asked(FOLDER / f"{model}.sbatch")
    gpus = int(options["--gpus-per-node"])
    assert int(options["--ntasks-per-node"]) == gpus
    allocation = Allocation(
        nodes=int(options["--nodes"]),
        gpus_per_node=gpus,
        nvlink_domain=gpus,
        gpu=hardware.load("h100"),
        time_limit_seconds=launch_sbatch.parse_time(options["--time"]),
        save_seconds=int(options["--signal"].removeprefix("B:USR1@")),
    )
    text = (ROOT / f"examples/models/{model}.toml").read_text()
    long = re.findall(r"Stage 3 .*pass (parallel\.tensor=\d)", text)
    for stage in launch.STAGES:
        files = (ROOT / f"examples/stages/{stage}.toml", ROOT / f"examples/models/{model}.toml")
        config = settings.load(files, long if "3_long" in stage else [])
        assert planner.faults(config, allocation) == []
        assert planner.advice(config, allocation) == []


@pytest.mark.parametrize("model", MODELS)
def test_a_models_job_differs_from_the_general_one_in_name_and_size_alone(model):
    path = FOLDER / f"{model}.sbatch"
    own = {"--job-name", "--nodes", "--gpus-per-node"}
    general = asked(FOLDER / "train.sbatch")
    assert {k: v for k, v in asked(path).items() if k not in own} == {
        k: v for k, v in general.items() if k not in own
    }
    assert f"examples/models/{model}.toml" in path.read_text()
    assert asked(path)["--job-name"] == model.replace("_", "-")
