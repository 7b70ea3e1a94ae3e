"""The replay of syncs keeps synced files and nothing else."""

import os
from pathlib import Path

import power
import pytest


@pytest.fixture
def record(tmp_path, monkeypatch):
    """A folder whose syncs are noted; (it, a function that gives the events up to now)."""
    monkeypatch.setattr(os, "fsync", os.fsync)  # put back afterwards
    folder = tmp_path / "disk"
    folder.mkdir()
    power.record(folder, tmp_path / "journal")
    return folder, lambda: power.read(tmp_path / "journal")


def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


def test_a_power_cut_keeps_contents_and_names_that_were_synced(record):
    folder, events = record
    (folder / "deep").mkdir()
    for name in ("a", "nameless", "deep/b"):
        (folder / name).write_text("kept")
        sync(folder / name)
    (folder / "nameless").rename(folder / "later")
    (folder / "empty").touch()
    sync(folder / "deep")
    sync(folder)
    (folder / "a").write_text("not kept")
    (folder / "later").rename(folder / "deep/later")
    (folder / "new").write_text("not kept")
    power.cut(folder, events())
    assert files(folder) == {"a": "kept", "later": "kept", "deep/b": "kept", "empty": ""}


def test_a_power_cut_at_an_earlier_moment_keeps_what_was_synced_until_then(record):
    folder, events = record
    for text in ("one", "two"):
        (folder / "a").write_text(text)
        sync(folder / "a")
        sync(folder)
    assert len(events()) == 4
    for count, left in ((4, {"a": "two"}), (3, {"a": "two"}), (2, {"a": "one"}), (1, {})):
        power.cut(folder, events()[:count]) if count < 4 else None
        assert files(folder) == left


def test_names_may_be_kept_without_their_contents(record):
    folder, events = record
    (folder / "a.partial").write_text("one")
    sync(folder / "a.partial")
    (folder / "a.partial").rename(folder / "a")
    (folder / "a").write_text("other")
    (folder / "b").write_text("never synced")
    power.keep_names(folder, events())
    assert files(folder) == {"a": "one", "b": ""}


def test_what_lies_elsewhere_is_not_noted(record, tmp_path):
    _, events = record
    Path(tmp_path / "elsewhere").write_text("x")
    sync(tmp_path / "elsewhere")
    assert events() == []
