"""A run that goes on reports changed settings, its end, and the batches that it left out."""

import json

import broken
import chaos
import pytest
from ranks import run_ranks

from megatron_qwen3 import train
from megatron_qwen3.storage import folder, manifest
from megatron_qwen3.training import run
from megatron_qwen3.training.progress import Progress


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return broken.corpus(tmp_path_factory.mktemp("corpus"))


def twice(*runs):
    """Statuses and lines of runs, one after the other, in processes of their own."""
    return [run_ranks(told, 1, arguments)[0] for arguments in runs]


def told(arguments):
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = train.main(arguments)
    return status, out.getvalue().splitlines()


def test_what_changed_is_listed_and_a_done_run_says_so(settings, tmp_path):
    first = [*settings, f"run.dir={tmp_path}", "run.name=run", "train.steps=2"]
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    stale = {"first": 0, "last": 50, "reason": "of another run"}
    (run_dir / "left_out.jsonl").write_text(json.dumps(stale) + "\n")
    (run_dir / "wandb_id").write_text("of another run")
    more = [*first, "train.steps=3", "optim.beta2=0.99", "optim.schedule=cosine"]
    (status, fresh), (again, done), (last, on) = twice(first, first, more)
    assert (status, again, last) == (0, 0, 0)
    assert not (run_dir / "left_out.jsonl").exists() and not (run_dir / "wandb_id").exists()
    assert [step for step, _ in chaos.losses(run_dir)] == [1, 2, 3]
    resumed = f"resumed from {run_dir}/checkpoints/step_00000002"
    assert done[:2] == [resumed, "this run is done: all of its 2 steps are trained"]
    assert on[:5] == [
        resumed,
        "changed: train.steps: 2 → 3",
        'changed: optim.schedule: "constant" → "cosine"',
        "changed: optim.beta2: 0.95 → 0.99",
        "changed: learning rate of step 3: 0.0003 → 3e-05",
    ]


def saved_with(run_dir, step, *losses):
    path = folder.named(run_dir, step)
    path.mkdir(parents=True)
    progress = Progress(step, recent=tuple((loss, 1.0) for loss in losses))
    (path / "progress.json").write_text(progress.to_json())
    manifest.write(path, {"progress.json": manifest.seal(path / "progress.json")})
    return path


def test_a_checkpoint_from_after_a_divergence_is_not_called_intact(tmp_path):
    assert run.last_saved(tmp_path) == "nothing was saved yet"
    falling = [4 - 0.01 * step for step in range(40)]
    sound = saved_with(tmp_path, 40, *falling)
    assert run.last_saved(tmp_path) == f"the last checkpoint, {sound}, is intact"
    after = saved_with(tmp_path, 50, *falling, 5, 7, 9, 10, 11, 11)
    said = run.last_saved(tmp_path)
    assert said.startswith(f"the last checkpoint, {after}, was saved when the loss had risen by ")
    assert said.endswith(f"{sound} is older and sound")
    (sound / "progress.json").unlink()
    assert run.last_saved(tmp_path).endswith("none is older and sound")
