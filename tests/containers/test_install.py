"""The Dockerfile's steps, carried out: pip installs the image's packages, on a stand-in for it.

Only parts that need NVIDIA's image are stood in (`image.py`); packages come from the registry.
torch and triton, which the pinned megatron-core imports, are those of the Python that runs this.
"""

import json
import os
import subprocess

import numpy as np
import pytest
from definitions import INSIDE, ROOT, copy, in_context, instructions
from image import StandIn

from containers.pins import pinned
from data_prep.indexed import IndexedWriter

pytestmark = [pytest.mark.containers, pytest.mark.timeout(2400)]


class Built:
    """The results of the steps: the environment `venv` and the folder `workspace`."""

    def __init__(self, folder):
        self.image, self.inside = StandIn(folder / "image"), folder / "project"
        self.venv, self.workspace = folder / "venv", folder / "workspace"
        self.environment = self.image.environment | {
            "MQ3_VENV": str(self.venv),
            "MQ3_WORKSPACE": str(self.workspace),
            "PIP_NO_CACHE_DIR": "0",
            "PIP_IGNORE_REQUIRES_PYTHON": "1",  # the image has 3.12, which megatron-core asks for
        }
        for name, rest in instructions():
            if name == "COPY":
                self._copy(*rest.split())
            elif name == "RUN":
                rest = rest.replace(INSIDE, str(self.inside))
                if os.geteuid() != 0:  # nor can anybody else build an image
                    rest = rest.replace(" system ", " ")
                self.run("bash", "-c", rest)

    def _copy(self, *words):
        *sources, target = words
        target = self.inside / target.removeprefix(INSIDE).strip("/")
        for source in in_context() if sources == ["."] else sources:
            whole_folder = (ROOT / source).is_dir() and sources != ["."]
            copy(ROOT / source, target if whole_folder else target / source)

    def run(self, *words, **options):
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=1800, **options
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def versions(self):
        text = self.run(self.venv / "bin/python", "-m", "pip", "list", "--format=json")
        return {row["name"].lower().replace("_", "-"): row["version"] for row in json.loads(text)}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return Built(tmp_path_factory.mktemp("built"))


def test_the_images_own_packages_stay_and_are_the_ones_that_are_imported(built):
    versions = built.versions()
    constraints = pinned(built.venv / "constraints.txt")
    for name in ("torch", "transformer-engine", "apex", "nvidia-dali-cuda130", "numpy", "triton"):
        assert versions[name] == constraints[name]
        assert not list(built.venv.glob(f"lib/*/site-packages/{name.replace('-', '_')}*"))
    where = built.run(built.venv / "bin/python", "-c", "import torch; print(torch.__file__)")
    assert where.startswith(str(built.image.site))


def test_what_is_added_is_what_is_pinned(built):
    versions = built.versions()
    for package in built.venv.glob("lib/*/site-packages/*.dist-info"):
        name = package.name.partition("-")[0].lower().replace("_", "-").replace(".", "-")
        if name != "megatron-qwen3":
            pins = pinned(ROOT / "containers/constraints.txt")
            assert versions[name] == pins[name], name
    assert (built.image.site / "PyYAML-6.0.1.dist-info").is_dir()  # an older one is hidden


def test_a_stage_trains_away_from_the_checkout(built):
    with IndexedWriter(built.workspace / "numbers", np.uint16) as writer:
        for first in range(40):
            writer.add_document((first + np.arange(100)) % 512)
    words = ["model.preset=tiny-moe", "data.sequence_length=32", "data.held_out=0"]
    words += ['data.sources=[{name="numbers", path="numbers"}]', "train.precision=fp32"]
    words += ["train.steps=2", "train.global_batch=2", "run.device=cpu", "log.tensorboard=false"]
    (entry_point,) = (json.loads(rest) for name, rest in instructions() if name == "ENTRYPOINT")
    program = built.venv / "bin" / entry_point[0]
    built.run(program, *entry_point[1:], "train", *words, cwd=built.workspace)
    rows = map(json.loads, (built.workspace / "runs/run/metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]


def test_anybody_may_write_to_the_workspace(built):
    assert built.workspace.stat().st_mode & 0o7777 == 0o1777
