"""Names of the hub are found where Hugging Face's programs keep copies, and nothing is fetched."""

import json
from pathlib import Path

import pytest

from data_prep.tokenizer_file import tokenizer_json
from megatron_qwen3 import hub
from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.training import tokenizer_check


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A cache with two snapshots of Some/Model, of which main names the older one."""
    place = tmp_path / "models--Some--Model"
    for commit in ("aaa", "bbb"):
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "tokenizer.json").write_text("{}")
    (place / "snapshots" / "bbb" / "config.json").write_text(json.dumps({}))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("aaa")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return place / "snapshots"


def test_a_name_is_its_snapshot_that_has_the_file(cached):
    assert hub.folder_of("Some/Model", "tokenizer.json") == cached / "aaa"
    assert hub.folder_of("Some/Model", "config.json") == cached / "bbb"
    assert tokenizer_json("Some/Model") == cached / "aaa" / "tokenizer.json"


def test_a_tokenizer_is_named_by_its_folder_its_file_or_on_the_hub(cached, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tokenizer.json").write_text("{}")
    assert hub.tokenizer_folder("Some/Model") == cached / "aaa"
    assert hub.tokenizer_folder("own") == hub.tokenizer_folder("own/tokenizer.json") == Path("own")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("Some/Other", "hf download Some/Other tokenizer.json --local-dir FOLDER, and give FOLDER"),
        ("gone", "does not exist; valid: a folder with tokenizer.json"),
    ],
)
def test_a_tokenizer_that_is_not_here_is_told_with_its_setting_and_the_way_out(cached, named, said):
    for setting in ("data.tokenizer", "--tokenizer"):
        with pytest.raises(ConfigError) as told:
            hub.tokenizer_folder(named, setting)
        text = str(told.value)
        assert text.startswith(f"{setting} = {named} ") and said in text and "\n" not in text


def test_a_path_is_itself_whatever_it_is_called(cached, tmp_path):
    (tmp_path / "Some" / "Model").mkdir(parents=True)
    assert not hub.is_id("Some/Model")
    assert str(hub.folder_of("Some/Model", "tokenizer.json")) == "Some/Model"
    for name in ("folder", "a/b/c", "/abs/path", "./x/y"):
        assert not hub.is_id(name)


def test_a_name_without_a_copy_says_how_to_get_one(cached):
    with pytest.raises(ConfigError) as told:
        tokenizer_json("Some/Other")
    text = str(told.value)
    assert "\n" not in text and "hf download Some/Other tokenizer.json --local-dir FOLDER" in text


def test_no_module_takes_a_tokenizers_name_for_a_path():
    for path in Path(hub.__file__).parent.rglob("*.py"):
        assert "Path(config.data.tokenizer)" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("named", ["Some/Other", "gone"])
def test_a_run_whose_tokenizer_is_not_here_is_told_the_setting(cached, named):
    config = load([], ["model.preset=tiny-dense", "train.steps=1", f"data.tokenizer={named}"])
    with pytest.raises(ConfigError, match=f"^data.tokenizer = {named} "):
        tokenizer_check.check_size(config)
