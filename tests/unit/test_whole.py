"""Files appear whole or not at all, locks name their owner, shown text steers nothing."""

import contextlib
import fcntl
import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import plain, shown
from megatron_qwen3.storage.lock import InUse, owned
from megatron_qwen3.storage.whole import beside, whole_file, whole_folder, write_whole


def test_a_file_that_failed_half_way_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_whole(path, [b"old"])
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_same_bytes_leave_a_file_as_old_as_it_was(tmp_path):
    path = tmp_path / "a"
    write_whole(path, [b"one"])
    os.utime(path, (1, 1))
    write_whole(path, [b"o", b"ne"], keep_same=True)
    assert path.stat().st_mtime == 1 and list(tmp_path.iterdir()) == [path]
    write_whole(path, [b"two"], keep_same=True)
    assert path.stat().st_mtime > 1 and path.read_bytes() == b"two"
    os.utime(path, (1, 1))
    write_whole(path, [b"two"])
    assert path.stat().st_mtime > 1


def test_two_writers_of_one_name_do_not_mix(tmp_path):
    path, both = tmp_path / "a.bin", threading.Barrier(2)

    def write(letter):
        with whole_file(path) as file:
            for _ in range(50):
                file.write(letter * 1000)
            both.wait()

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in (b"a" * 50_000, b"b" * 50_000)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_appears_meanwhile_is_not_written_over(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(ConfigError, match="meanwhile"), whole_folder(path) as inside:
        (inside / "ours").touch()
        path.mkdir()
        (path / "theirs").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "theirs"]


@pytest.mark.parametrize("name", ["a" * 255, "語" * 85])
def test_long_names_have_room_for_a_partial_one(tmp_path, name):
    write_whole(tmp_path / name, [b"x"])
    assert len(os.fsencode(beside(tmp_path / name).name)) <= 255
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_second_owner_is_told_host_and_process_of_the_first(tmp_path):
    expected = f"host {socket.gethostname()}, process {os.getpid()}"
    with (
        owned(tmp_path),
        pytest.raises(ConfigError, match=expected),
        owned(tmp_path, patience_seconds=0),
    ):
        pass
    with owned(tmp_path, patience_seconds=0):  # it ends with its owner
        pass


def test_an_owner_who_comes_between_another_ones_two_locks_is_not_joined(tmp_path, monkeypatch):
    flock = fcntl.flock

    def overtaken(file, kind):
        if kind & fcntl.LOCK_SH:  # the kernel lets the first lock go before it gives the second
            flock(file, fcntl.LOCK_UN)
            other = held.enter_context((tmp_path / "lock").open("a+"))
            flock(other, fcntl.LOCK_EX)
        return flock(file, kind)

    with contextlib.ExitStack() as held:
        monkeypatch.setattr(fcntl, "flock", overtaken)
        with pytest.raises(InUse), owned(tmp_path, patience_seconds=0):
            pass


@given(st.text(st.characters(exclude_categories=())))
def test_shown_text_has_no_character_that_steers_a_terminal_and_keeps_words(text):
    safe = shown(text)
    assert not any(c in safe for c in "\n\r\x1b\x07\x9b\u202e\u2028\ud800")
    safe.encode()  # no surrogate is left, whatever file name it came from
    assert shown(safe) == safe


def test_words_of_every_script_are_shown_as_they_are():
    for text in ("नमस्ते", "می\u200cخواهم", "日本語 [red]", "naïve"):
        assert shown(text) == text


def test_rich_reads_no_markup_in_plain_text(capsys):
    Console(width=80).print(plain("[/red] \x1b[31m"))
    assert capsys.readouterr().out == "[/red] \\x1b[31m\n"


def test_what_a_killed_writer_left_is_used_and_not_gathered(tmp_path):
    path = tmp_path / "a.json"
    for _ in range(3):
        if not os.fork():
            with whole_file(path) as file:
                file.write(b"half of it")
                file.flush()
                os._exit(9)
        os.wait()
    assert len(list(tmp_path.iterdir())) == 1
    write_whole(path, [b"whole"])
    assert path.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [path]
