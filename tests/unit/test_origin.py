"""A run folder's record of the settings that it was trained with."""

import pytest

from megatron_qwen3.config import load
from megatron_qwen3.training.origin import prepare_folder
from megatron_qwen3.training.progress import Progress

TINY = ["model.preset=tiny-dense", "train.steps=8"]


@pytest.mark.parametrize(("step", "is_new"), [(0, True), (7, True), (8, False), (9, False)])
def test_settings_of_a_folder_are_those_that_its_steps_are_trained_with(tmp_path, step, is_new):
    folder = f"run.dir={tmp_path}", "run.name=a"
    before, now = load([], [*TINY, *folder]), load([], [*TINY, *folder, "optim.lr=0.25"])
    prepare_folder(before, Progress(step))
    assert load([before.run_dir / "config.toml"]) == before  # there was none
    prepare_folder(now, Progress(step))
    assert load([before.run_dir / "config.toml"]) == (now if is_new else before)
