"""`mq3 checkpoint`: a folder that is named wrongly is not told as a damaged checkpoint."""

from pathlib import Path

import pytest

from megatron_qwen3.cli.checkpoint import main


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_what_is_no_folder_is_a_wrong_call_and_not_a_damaged_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main([str(tmp_path / "none"), *options]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err == f"error: {tmp_path}/none is no folder; a checkpoint is RUN/checkpoints/step_…\n"


def test_a_folder_without_its_manifest_is_damaged(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 1
