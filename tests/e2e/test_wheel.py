"""A wheel of the project, installed in an environment of its own, has all that it says."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    # A copy of what is in the index: pip builds in the folder that it is given.
    source = tmp_path_factory.mktemp("source")
    subprocess.run(["git", "checkout-index", "-a", f"--prefix={source}/"], cwd=ROOT, check=True)
    subprocess.run([*command, "--wheel-dir", out, source], check=True)
    (path,) = out.glob("*.whl")
    return path


def test_its_files_are_those_of_the_packages_with_licence_and_types(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"megatron_qwen3", "data_prep", "megatron_qwen3-0.1.0.dist-info"}
    for name in ("megatron_qwen3/py.typed", "data_prep/py.typed", "megatron_qwen3/pages/page.css"):
        assert name in names
    assert any(name.endswith("/LICENSE") for name in names)


def test_its_metadata_has_a_licence_authors_classifiers_and_no_torch_in_the_base(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    text = archive.read(name).decode()
    head = text.partition("\n\n")[0]
    assert "License: Apache-2.0" in head or "License-Expression: Apache-2.0" in head
    assert "Author: " in head and head.count("\nClassifier: ") >= 5
    base = [
        line
        for line in head.splitlines()
        if line.startswith("Requires-Dist:") and "extra" not in line
    ]
    assert base and not any("torch" in line or "heliport" in line for line in base)


def test_installed_by_itself_it_helps_and_says_what_it_lacks(wheel, tmp_path):
    """The rest of the base comes from this environment, and torch is kept from being found."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site]
    subprocess.run([*command, wheel], check=True)
    (site / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')")
    environment = os.environ | {"PYTHONPATH": str(site)}

    def mq3(*words):
        return subprocess.run(
            [sys.executable, "-m", "megatron_qwen3", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    assert "data clean" in mq3("--help").stdout
    done = mq3("plan", "--model", "8b", "--gpu", "h100", "--gpus", "8", "--json")
    assert done.returncode == 0, done.stderr
    done = mq3("train", "model.preset=tiny-dense", "train.steps=1", "run.device=cpu")
    assert done.returncode == 2 and "pip install 'megatron_qwen3[train]'" in done.stderr
