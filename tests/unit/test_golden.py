"""The choice of golden files' cases; those left out are named."""

import json

import pytest

from tests import golden


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of golden files of our own, with a kind that is known, and one that is not."""
    rows = [{"id": "a", "kind": "sft"}, {"id": "b", "kind": "new"}, {"id": "c", "kind": "new"}]
    (tmp_path / "rl_losses.json").write_text(json.dumps({"cases": rows}))
    monkeypatch.setenv("GOLDEN", str(tmp_path))
    golden.read.cache_clear()
    yield tmp_path
    golden.read.cache_clear()


def reasons(parameters):
    return [mark.kwargs["reason"] for one in parameters for mark in one.marks]


def test_the_folder_that_golden_names_is_read_and_what_is_left_out_is_said(folder):
    assert golden.folder() == folder
    found = golden.cases("rl_losses.json", "sft", "gkd_jsd")
    assert [one.id for one in found] == ["a", "gkd_jsd"] and found[0].values[0]["kind"] == "sft"
    assert reasons(found) == ["rl_losses.json has no case of kind gkd_jsd"]
    missing = golden.cases("verifiers.json", "math")
    assert reasons(missing) == [f"verifiers.json is not in {folder}; GOLDEN names another folder"]
    assert reasons(golden.untested()) == ["rl_losses.json: no test reads the 2 cases of kind new"]


@pytest.mark.parametrize("kind", golden.untested())
def test_a_kind_that_no_test_reads_is_skipped_by_name(kind):
    raise AssertionError(f"{kind} is read by no test and was not skipped")
