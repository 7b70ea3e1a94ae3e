"""Files of a folder that a stranger filled: plain ones of its own, and nothing else."""

import json
import os

import pytest

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.storage import manifest
from megatron_qwen3.storage.inside import check_links, fault_of, inside, parse_json, read_small
from megatron_qwen3.training.progress import LeftOut, Progress

DEEP = 200_000


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "a").write_text("own")
    (tmp_path / "private").write_text("secret")
    return folder


def link_out(folder):
    (folder / "x").symlink_to("../private")


def link_out_by_two(folder):
    (folder / "y").symlink_to("../private")
    (folder / "x").symlink_to("y")


def linked_folder(folder):
    (folder / "x").symlink_to("..")


def loop(folder):
    (folder / "x").symlink_to("x")


def nowhere(folder):
    (folder / "x").symlink_to("gone")


def pipe(folder):
    os.mkfifo(folder / "x")


def device(folder):
    (folder / "x").symlink_to("/dev/zero")


def a_folder(folder):
    (folder / "x").mkdir()


MADE = [link_out, link_out_by_two, linked_folder, loop, nowhere, pipe, device, a_folder]


@pytest.mark.parametrize("make", MADE)
def test_what_is_no_plain_file_of_the_folder_is_refused_and_not_waited_for(folder, make):
    make(folder)
    with pytest.raises((ConfigError, OSError)) as error:
        inside(folder, "x")
    assert "\n" not in str(error.value)
    with pytest.raises((ConfigError, OSError)):
        read_small(folder / "x", limit=3)


@pytest.mark.parametrize("name", ["../private", "/etc/hostname", "", ".", "..", "a/../../private"])
def test_a_name_that_leads_out_is_refused(folder, name):
    with pytest.raises(ConfigError):
        inside(folder, name)


def test_links_within_a_folder_and_those_of_the_hubs_cache_are_followed(folder, tmp_path):
    (folder / "x").symlink_to("a")
    assert inside(folder, "x").read_text() == "own"
    snapshot, blobs = tmp_path / "models--a" / "snapshots" / "1", tmp_path / "models--a" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "7").write_text("blob")
    (snapshot / "x").symlink_to("../../blobs/7")
    assert inside(snapshot, "x").read_text() == "blob"
    check_links(snapshot)
    (snapshot / "y").symlink_to("../../../private")
    with pytest.raises(ConfigError, match="leaves the folder"):
        inside(snapshot, "y")


@pytest.mark.parametrize("place", ["x", "tokenizer/x"])
def test_a_link_that_leaves_is_found_wherever_a_reader_may_open_it(folder, place):
    check_links(folder)
    (folder / place).symlink_to(folder.parent / "private")
    with pytest.raises(ConfigError, match="x: a link to .*private, which leaves the folder"):
        check_links(folder)


def test_deep_nesting_is_a_fault_of_the_file(tmp_path):
    with pytest.raises(ValueError, match="nested"):
        parse_json("[" * DEEP)
    (tmp_path / "config.toml").write_text("a = " + "[" * DEEP)
    with pytest.raises(ConfigError, match="nested too deeply"):
        load([tmp_path / "config.toml"])
    (tmp_path / "progress.json").write_text("[" * DEEP)
    with pytest.raises(ConfigError, match="damaged"):
        Progress.read(tmp_path)
    (tmp_path / "manifest.json").write_text("[" * DEEP)
    assert manifest.faults(tmp_path) == ["manifest.json: damaged"]


@pytest.mark.parametrize("make", MADE)
def test_a_manifest_of_something_else_than_files_is_a_fault(folder, make):
    make(folder)
    manifest.write(folder, {"x": manifest.Seal(6, 0)})
    (fault,) = manifest.faults(folder, share=(0, 1))
    assert fault.startswith("x: ") and "\n" not in fault


@pytest.mark.parametrize("name", ["../private", "/etc/hostname", "a\nb"])
def test_a_manifest_that_names_what_is_not_there_is_a_fault_in_one_line(folder, name):
    manifest.write(folder, {name: manifest.Seal(6, 0)})
    (fault,) = manifest.faults(folder)
    assert "\n" not in fault


@pytest.mark.parametrize(
    "content",
    [
        {"files": {}},
        {"files": {"a": {"bytes": 1e999, "crc32": "0"}}},
        {"files": {"a": {"bytes": True, "crc32": "0"}}},
        {"files": {"a": {"bytes": 3, "crc32": "0" * 100}}},
        {"files": {"a": 3}},
        {"files": ["a"]},
        [],
    ],
)
def test_a_manifest_that_says_nothing_or_nonsense_is_a_fault(folder, content):
    (folder / "manifest.json").write_text(json.dumps(content))
    (fault,) = manifest.faults(folder)
    assert fault.startswith("manifest.json: ")


@pytest.mark.parametrize("name", ["__5_0.distcp", ".metadata", "config.toml", "progress.json"])
def test_what_a_load_reads_must_be_in_the_manifest(folder, name):
    manifest.write(folder, {"a": manifest.seal(folder / "a")})
    assert manifest.faults(folder) == []
    (folder / name).write_text("more")
    (folder / "notes.txt").write_text("a person's")
    assert manifest.faults(folder) == [f"{name}: not listed in manifest.json"]


@pytest.mark.parametrize(
    "content",
    [
        {"step": "4", "left_out": [], "recent": []},
        {"step": -1, "left_out": [], "recent": []},
        {"step": 4, "left_out": [[1, 2, "x"]], "recent": []},
        {"step": 4, "left_out": [], "recent": [1]},
        {"step": 4, "left_out": [{"first": 0, "last": 10**15, "reason": ""}], "recent": []},
        {"step": 4},
        7,
    ],
)
def test_a_progress_file_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "progress.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="progress.json: damaged"):
        Progress.read(tmp_path)


def test_updates_of_endless_gaps_are_counted_at_once():
    gaps = (LeftOut(2, 3, ""), LeftOut(3, 5, ""), LeftOut(9, 10**15, ""), LeftOut(50, 60, ""))
    assert Progress(100, gaps).updates == 2 + 3
    assert Progress(4, gaps).updates == 2 and Progress(0, gaps).updates == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it is no JSON: Expecting value: line 1 column 1 (char 0)"),
        ("{}", "it lacks 'version'"),
        ("[]", "list indices must be integers or slices, not str"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_without_the_name_of_an_exception(content, said):
    with pytest.raises((ValueError, LookupError, TypeError)) as caught:
        parse_json(content)["version"]
    assert fault_of(caught.value) == said
