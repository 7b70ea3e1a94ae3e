"""Commands end in a line, whatever is wrong, and with the status that shells expect."""

import importlib
import os
import signal
import time

import pytest

from megatron_qwen3.chat_check import ChatError
from megatron_qwen3.cli.commands import COMMANDS
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.config import ConfigError

NO_SPACE = OSError(28, "No space left on device", "/data/a.bin")


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("error", [ConfigError("x = 1"), ChatError("no role"), NO_SPACE], ids=repr)
def test_an_error_is_one_line_and_status_2(capsys, error, goes_on):
    @ending(goes_on)
    def main() -> int:
        raise error

    assert main() == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {error}") and told.count("\n") == 1
    assert told.endswith("the same command goes on\n") == (goes_on and error is NO_SPACE)


@pytest.fixture
def interruptible():
    """Where the tests run in the background of a shell, it has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_command_that_goes_on_says_so_when_it_is_stopped(capsys):
    @ending(goes_on=True)
    def main(number: signal.Signals) -> int:
        os.kill(os.getpid(), number)
        while True:  # another thread may be given the signal: then this one is not woken by it
            time.sleep(0.01)

    assert (main(signal.SIGTERM), main(signal.SIGINT)) == (143, 130)
    assert capsys.readouterr().err == 2 * "stopped; the same command goes on\n"


def test_every_command_ends_so():
    others = {"megatron_qwen3.train", "megatron_qwen3.cli.completion"}  # status 75; no file
    for module in {command.module for command in COMMANDS.values()} - others:
        assert hasattr(importlib.import_module(module).main, "__wrapped__"), module
