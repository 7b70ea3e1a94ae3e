"""Nothing that lies in the caller's folder is imported, and no torch.load runs code."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_qwen3.convert import reference
from megatron_qwen3.processes import isolated
from megatron_qwen3.studies import local

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("tomllib", "difflib", "numpy", "torch", "transformers", "rich")


@pytest.fixture
def trap(tmp_path):
    """A folder with modules that leave a mark when they are imported."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    return folder


def run(words, folder, path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    environment |= {"PYTHONPATH": path}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("path", [str(ROOT), f"{ROOT}{os.pathsep}", f"{ROOT}{os.pathsep}."])
def test_a_command_started_in_a_strangers_folder_imports_nothing_of_it(trap, tmp_path, path):
    done = run(["-m", "megatron_qwen3.train", "none.toml"], trap, path)
    assert done.returncode == 2 and "none.toml: cannot be read" in done.stderr, done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_named_in_full_stays_on_the_path(tmp_path):
    (tmp_path / "mine.py").write_text("")
    show = "import sys; sys.argv[:] = ['-m']; import megatron_qwen3, mine"
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    assert run(["-c", show], tmp_path, path).returncode == 0
    assert "No module named 'mine'" in run(["-c", show], tmp_path, str(ROOT)).stderr
    assert run(["-P", "-c", show], tmp_path, path).returncode == 0


def test_a_checkout_is_still_run_from_its_own_folder(tmp_path):
    link = tmp_path / "checkout"
    link.symlink_to(ROOT)
    done = run(["-S", "-m", "megatron_qwen3.config"], link, "")
    assert done.returncode == 0 and "[model]" in done.stdout, done.stderr
    where = "import sys, megatron_qwen3; print(sys.path[0])"
    assert run(["-S", "-c", where], link, "").stdout == "\n"  # another program's path is its own


def test_every_process_loads_plain_data_alone_whatever_it_was_told(trap):
    show = "import os, megatron_qwen3; print({k: v for k, v in os.environ.items() if 'ONLY' in k})"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    environment.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD", None)
    done = subprocess.run(
        [sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "{'TORCH_FORCE_WEIGHTS_ONLY_LOAD': '1'}\n"


def test_processes_that_we_start_have_no_path_entry_that_means_a_folder_to_be(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", "/opt/own", "here", ""]))
    assert isolated()["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/opt/own"]
    assert local._environment(2)["PYTHONPATH"] == isolated()["PYTHONPATH"]
    for ranks in (1, 2):
        assert local.command(local.Point(config=None, ranks=ranks), Path("x"))[1] == "-P"


def test_the_reference_starts_apart_from_the_callers_folder(trap, tmp_path, monkeypatch):
    """A process of its own, in which a module beside the model cannot be found."""
    found = {}

    def instead(command, **settings):
        assert command[1:4] == ["-P", "-m", "megatron_qwen3.convert.reference"]
        probe = "from importlib.util import find_spec; print(find_spec('transformers').origin)"
        settings["env"].pop("PYTHONSAFEPATH")  # -P alone is enough
        found["said"] = subprocess.run([*command[:2], "-c", probe], **settings)
        np.save(command[6], np.zeros(1, np.float32))
        return found["said"]

    monkeypatch.chdir(trap)
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}.")
    monkeypatch.setattr(reference, "subprocess", type("m", (), {"run": staticmethod(instead)}))
    reference.logits(Path("."), torch.zeros(1, 1, dtype=torch.long), "float32")
    assert "site-packages" in found["said"].stdout, found["said"].stderr
    assert not (tmp_path / "ran").exists()
