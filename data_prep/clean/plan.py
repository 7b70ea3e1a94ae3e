"""Finds the files that a cleaning reads, once, and divides them among its tasks.

The files of all inputs, in the order of their names, are cut into as many stretches of equal size
as there are tasks: plain JSONL anywhere, other files only between one and the next. So documents
have one order, and the first of several duplicates is the same however many tasks there are.

    files = find_files(settings)     # one walk through the inputs, one look at each file
    begin(settings, files)           # notes the settings, and each task's shares
    read_shares(settings, task=3)    # in task 3: its own line of plan/shares.jsonl, nothing else
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep import documents
from data_prep.classifiers import model_files
from data_prep.clean.files import cut_short, load, save
from data_prep.clean.own_steps import file_of
from data_prep.clean.settings import REPORT, SETTINGS, CleaningInput, CleanSettings
from data_prep.documents import FilePart
from data_prep.domains import CODE_SUFFIXES, is_code_file
from data_prep.remote import RemoteFile, files_below, is_url
from data_prep.tokenizer_file import tokenizer_json
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.whole import write_whole

_TEXT_SUFFIXES = (".txt", ".md", ".rst")
_SHARES, _SHARE_ENDS = "plan/shares.jsonl", "plan/share_ends.npy"
_LAYOUT = "plan/layout-2"  # of files in `work`; it is there where they are of this one


class InputFile(NamedTuple):
    """A file to read. input: number of the input that it belongs to; size in bytes."""

    input: int
    path: str
    size: int
    modified_ns: int


class InputShare(NamedTuple):
    """A part of a file, and the input that it belongs to."""

    input: CleaningInput
    part: FilePart


def find_files(settings: CleanSettings) -> list[InputFile]:
    """All files of the inputs; ConfigError where an input holds none of a known kind."""
    found = []
    for number, given in enumerate(settings.inputs):
        for file in _files(given.path, settings.hidden):
            found.append(InputFile(number, *file))
    return found


def begin(settings: CleanSettings, files: Sequence[InputFile]) -> str:
    """Note the settings in `out`, and each task's shares; returns a note for people, or "".

    Raises ConfigError where another cleaning began there, or this one with other files. Work that
    was done with another layout of its files is done again.
    """
    began = settings.folder(SETTINGS).exists() and not settings.folder(REPORT).exists()
    settings.claim(state_of_files(settings, files))
    note = ""
    if began and not settings.folder(_LAYOUT).exists():
        for name in ("logs", "work"):
            shutil.rmtree(settings.folder(name), ignore_errors=True)
        note = (
            f"{settings.out}: begun by an earlier version with other files in work/; from the start"
        )
    lines = [
        json.dumps([(share.input, *share.part) for share in shares]).encode() + b"\n"
        for shares in _share_out(files, settings.tasks)
    ]
    settings.folder("plan").mkdir(exist_ok=True)
    write_whole(settings.folder(_SHARES), lines)
    save(settings.folder(_SHARE_ENDS), np.array(list(accumulate(map(len, lines))), np.int64))
    write_whole(settings.folder(_LAYOUT), [])
    return note


def read_shares(settings: CleanSettings, task: int) -> list[InputShare]:
    """The shares of a task. OSError where `begin` was not called."""
    ends = load(settings.folder(_SHARE_ENDS))
    start = int(ends[task - 1]) if task else 0
    with settings.folder(_SHARES).open("rb") as file:
        file.seek(start)
        line = file.read(int(ends[task]) - start)
    try:
        rows = json.loads(line)
    except ValueError:
        raise cut_short(file.name) from None
    return [InputShare(settings.inputs[number], FilePart(*part)) for number, *part in rows]


def state_of_files(settings: CleanSettings, files: Sequence[InputFile]) -> dict[str, list[int]]:
    """Size and time of change of each file on which the result depends."""
    others = list(settings.decontaminate_against)
    others += [str(f) for model in settings.models.values() for f in model_files(model)]
    others += filter(None, map(file_of, settings.own_steps()))
    others += [str(Path(path, "index/index.json")) for path in settings.against]
    if settings.tokenizer:
        others.append(str(tokenizer_json(settings.tokenizer)))
    states = {path: os.stat(path) for path in others}
    of_others = {path: [state.st_size, state.st_mtime_ns] for path, state in states.items()}
    return {file.path: [file.size, file.modified_ns] for file in files} | of_others


def input_bytes(files: Sequence[InputFile]) -> int:
    """Bytes of all files, as they lie on disk."""
    return sum(map(_weight, files))


def not_read(settings: CleanSettings) -> str:
    """Which files of the inputs are passed over, for people; or ""."""
    folders = (given.path for given in settings.inputs)
    known = (*documents.SUFFIXES_IN_FOLDERS, *_TEXT_SUFFIXES, *CODE_SUFFIXES)
    return documents.not_read(folders, known)


def is_text(path: str) -> bool:
    """Whether a file is one document, all of it text."""
    return path.endswith(_TEXT_SUFFIXES) or is_code_file(path)


class _Stretch(NamedTuple):
    """A part of a file, and the number of its input."""

    input: int
    part: FilePart


def _share_out(files: Sequence[InputFile], tasks: int) -> list[list[_Stretch]]:
    """The share of each task; goes once through files and tasks, side by side."""
    sizes = list(map(_weight, files))
    total, before, task = max(1, sum(sizes)), 0, 0
    shares: list[list[_Stretch]] = [[] for _ in range(tasks)]
    for file, size in zip(files, sizes, strict=True):
        while total * (task + 1) // tasks <= before and task < tasks - 1:
            task += 1  # the one that has the file's first byte
        last = task if _is_whole(file.path) else tasks - 1
        for one in range(task, last + 1):
            low = max(total * one // tasks - before, 0)
            high = size if one == last else min(total * (one + 1) // tasks - before, size)
            if low < high:
                shares[one].append(_Stretch(file.input, FilePart(file.path, low, high)))
            if high == size:
                break
        before += size
    return shares


def _weight(file: InputFile) -> int:
    """Bytes; a text without any is a document still, which a task has to report."""
    return max(file.size, is_text(file.path))


def _files(path: str, hidden: bool) -> Iterator[RemoteFile]:
    """The file, or those within the folder; beside documents, .json is mostly something else."""
    if is_url(path):
        yield from _remote_files(path, hidden)
        return
    is_file = os.path.isfile(path)
    within = [path] if is_file else sorted(map(str, documents.files_within(path, hidden)))
    for name in _known(path, within, is_file):
        state = os.stat(name)
        yield RemoteFile(name, state.st_size, state.st_mtime_ns)


def _remote_files(url: str, hidden: bool) -> list[RemoteFile]:
    found = {file.path: file for file in files_below(url)}
    within = {name: file.below(url) for name, file in found.items()}
    seen = [
        name
        for name, below in within.items()
        if hidden or not any(part[:1] == "." for part in below.split("/"))
    ]
    return [found[name] for name in _known(url, seen, is_file=[*within.values()] == [""])]


def _known(path: str, names: Sequence[str], is_file: bool) -> list[str]:
    """Those that can be read by the ends of their names. ConfigError where there are none."""
    known = documents.SUFFIXES if is_file else documents.SUFFIXES_IN_FOLDERS
    chosen = [name for name in names if name.endswith(known) or is_text(name)]
    if not chosen:
        kinds = ", ".join((*known, *_TEXT_SUFFIXES, *sorted(CODE_SUFFIXES)))
        raise ConfigError(f"{path} is or holds no file ending in one of {kinds}")
    return chosen


def _is_whole(path: str) -> bool:
    return is_text(path) or not documents.is_splittable(path)
