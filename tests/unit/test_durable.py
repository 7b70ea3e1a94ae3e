"""After a power cut every saved checkpoint is there, and the rows that go with it."""

import os

import power
import pytest

from megatron_qwen3.storage import folder, manifest
from megatron_qwen3.storage.lock import owned
from megatron_qwen3.storage.whole import make
from megatron_qwen3.training.row_file import RowFile


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A folder whose syncs are noted."""
    monkeypatch.setattr(os, "fsync", os.fsync)  # put back afterwards
    (tmp_path / "disk").mkdir()
    power.record(tmp_path / "disk", tmp_path / "journal")
    return tmp_path / "disk"


def cut(disk):
    power.cut(disk, power.read(disk.parent / "journal"))


def test_a_published_checkpoint_is_whole_with_its_folders(disk):
    with owned(disk / "runs" / "run"):
        partial = folder.partial(disk / "runs" / "run", 4)
        make(partial)
        (partial / ".metadata").write_bytes(b"table")
        (partial / "weights").write_bytes(b"1234")
        names = (".metadata", "weights")
        manifest.write(partial, {name: manifest.seal(partial / name) for name in names})
        folder.publish(partial)
    cut(disk)
    found = folder.newest(disk / "runs" / "run")
    assert found and folder.step_of(found) == 4
    assert manifest.faults(found, share=(0, 1)) == []


def test_rows_that_were_synced_are_there(disk):
    rows = RowFile(disk / "metrics.jsonl", print)
    rows.write("one")
    rows.sync()
    rows.write("two")
    cut(disk)
    assert (disk / "metrics.jsonl").read_text() == "one\n"
