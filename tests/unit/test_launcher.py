"""What the launcher says of a rank: half of it is an error in one line, before torch is asked."""

import socket

import pytest

from megatron_qwen3 import generate, launcher, train
from megatron_qwen3.config import ConfigError
from megatron_qwen3.generate import __main__ as generate_command

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def environment(monkeypatch, **values):
    for name in (*WHOLE, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("given", [{}, {"WORLD_SIZE": "1"}, WHOLE])
def test_a_whole_environment_and_none_are_fine(monkeypatch, given):
    environment(monkeypatch, **given)
    launcher.check()
    assert (launcher.rank(), launcher.world_size()) == ((1, 2) if "RANK" in given else (0, 1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"RANK": None}, "WORLD_SIZE = 2 without RANK: torchrun sets them"),
        ({"WORLD_SIZE": None}, "RANK = 1 without WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two' is not a whole number"),
        ({"RANK": ""}, "RANK = '' is not a whole number"),
        ({"LOCAL_RANK": "first"}, "LOCAL_RANK = 'first' is not a whole number"),
        ({"LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE = '' is not a whole number"),
        ({"RANK": "2"}, "RANK = 2 of WORLD_SIZE = 2: ranks count from 0"),
        ({"MASTER_PORT": None}, "RANK = 1 without MASTER_PORT"),
    ],
)
def test_half_an_environment_is_told(monkeypatch, change, told):
    values = {name: value for name, value in (WHOLE | change).items() if value is not None}
    environment(monkeypatch, **values)
    with pytest.raises(ConfigError, match=told):
        launcher.check()


def test_train_and_generate_tell_it_in_a_line(monkeypatch, capsys, tmp_path):
    environment(monkeypatch, WORLD_SIZE="2")
    assert train.main(["model.preset=tiny-dense", "train.steps=1"]) == 2
    assert capsys.readouterr().err.startswith("error: WORLD_SIZE = 2 without RANK")
    assert generate.__name__ and generate_command.main([str(tmp_path), "--prompt", "a"]) == 2
    assert "WORLD_SIZE = 2 without RANK" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rank", "local", "told"),
    [("0", "0", "error: x\n"), ("1", "1", ""), ("8", "0", f"{socket.gethostname()}: error: x\n")],
)
def test_one_rank_of_each_machine_says_what_is_wrong_there(monkeypatch, capsys, rank, local, told):
    environment(monkeypatch, RANK=rank, LOCAL_RANK=local)
    launcher.tell("error: x")
    assert capsys.readouterr().err == told
