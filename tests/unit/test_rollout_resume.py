"""The batches that a run which goes on samples again: none that it would sample otherwise."""

from types import SimpleNamespace

import pytest
import records as made

from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts import resume


def begun(run_dir, step):
    """The batches that are left when a run begins at a step."""
    (run_dir / "metrics.jsonl").write_text("")
    config = SimpleNamespace(run_dir=run_dir, batch_updates=made.UPDATES)
    start, log = SimpleNamespace(step=step), SimpleNamespace(note=print)
    resume.begin(SimpleNamespace(config=config, start=start, log=log, left_out=[]))
    return records.batches(run_dir)


@pytest.mark.parametrize(
    ("sampled", "step", "stays"),
    [
        pytest.param(2, 2, False, id="the weights of now would sample it"),
        pytest.param(2, 3, True, id="in the middle of it"),
        pytest.param(0, 2, True, id="sampled ahead"),
        pytest.param(0, 1, True, id="sampled ahead, in the batch before it"),
    ],
)
def test_a_batch_that_teaches_nothing_is_sampled_again_by_the_same_weights_alone(
    tmp_path, sampled, step, stays
):
    made.write(tmp_path, 0, state={"empty": 0})
    made.write(tmp_path, 1, sampled_step=sampled, state={"empty": 1})
    assert begun(tmp_path, step) == ([0, 1] if stays else [0])
