"""Plans a tokenization: its inputs, its settings, and the units of its work.

    plan = make_plan(["data/clean/documents"], Settings("tokenizer"))
    settle(plan, out)               # ConfigError where OUT was begun with other inputs or settings

The work depends on inputs and settings alone, never on its workers. A group is a run of whole files
of about `group_bytes`: it is shuffled as one and belongs to one task. Its units are tokenized
independently of each other: byte ranges of plain JSONL, whole files of other kinds.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.clean.settings import check_result
from data_prep.documents import (
    NAMES,
    SUFFIXES_IN_FOLDERS,
    FilePart,
    files_within,
    is_splittable,
    not_read,
)
from data_prep.inventory import INVENTORY, INVENTORY_JSON
from data_prep.json_files import VERSION, read_json, write_json
from data_prep.kept_fields import ALL, NONE, fault_of
from data_prep.labels import LONGEST_LABEL
from data_prep.packed import SHORTEST_ROW
from data_prep.remote import RemoteFile, files_below, is_url
from data_prep.tokenizer_file import tokenizer_json
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown

PLAN = "plan.json"
OURS = (INVENTORY, INVENTORY_JSON, "tokenizer", "groups", "work", "problems")  # written beside it
UNIT_BYTES = 1 << 26
SHARD_TOKENS, SHARD_TOKENS_APART = 10**9, 64 * 10**6  # by default
DEFAULTED = ("source", "language", "domain")
# Values of settings in plans of old, which do not name them.
_OF_OLD = {"hidden": True, "pack": 0, "keep_fields": [NONE], "apart": True}


@dataclass(frozen=True)
class Settings:
    """The settings on which the shards depend besides the documents.

    tokenizer: folder or tokenizer.json. names: names of fields in the files, where that is
    not their own name. defaults: source, language or domain of documents that have none.
    apart: whether each combination of labels has shards of its own, as in plans that began before
    there was a choice; otherwise all of a group share them. shard_tokens: about how many a shard
    has at most; None as it began, else SHARD_TOKENS. group_bytes: of input, shuffled as one.
    pack: tokens of the rows that documents are laid out in (`data_prep/lay_out.py`), 0 where they
    simply follow each other.
    hidden: whether files and folders whose names begin with a dot are read, as plans do that began
    before there was a choice. keep_fields: which fields beside text and labels stay in the shards'
    provenance (`kept_fields.py`).
    """

    tokenizer: str
    seed: int = 0
    names: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    shard_tokens: int | None = None
    group_bytes: int = 1 << 36
    hidden: bool = False
    pack: int = 0
    keep_fields: tuple[str, ...] = (ALL,)
    apart: bool = False

    @property
    def most_tokens(self) -> int:
        """Tokens of a shard, at most."""
        usual = SHARD_TOKENS_APART if self.apart else SHARD_TOKENS
        return usual if self.shard_tokens is None else self.shard_tokens


class TokenizeInput(NamedTuple):
    """A file of documents. name: a URL, or relative to the folder that all of them share."""

    name: str
    path: str
    size: int
    modified_ns: int


class Unit(NamedTuple):
    """A part of input number `input` that one worker tokenizes at a time."""

    number: int
    input: int
    part: FilePart


@dataclass(frozen=True)
class TokenizePlan:
    """groups: numbers of the inputs of each."""

    settings: Settings
    inputs: tuple[TokenizeInput, ...]
    groups: tuple[range, ...]

    def units(self, group: int) -> list[Unit]:
        """The units of a group, in the order of its files."""
        return units_of(self.inputs, self.groups[group])


def make_plan(paths: Sequence[str | os.PathLike[str]], settings: Settings) -> TokenizePlan:
    """Raises ConfigError where a path does not exist or holds no documents, or a setting is
    wrong."""
    _check(settings)
    inputs = find_inputs(paths, settings.hidden)
    return TokenizePlan(settings, inputs, tuple(_groups(inputs, settings.group_bytes)))


def as_begun(settings: Settings, out: Path) -> Settings:
    """The settings, with those of a plan begun in `out` where they are left open: the choice of
    files, the kind of shards; no other fields where it began when nothing was kept."""
    path = out / PLAN
    if not path.exists():
        return replace(settings, shard_tokens=settings.most_tokens)
    named = read_json(path, "it was removed just now").get("settings", {})
    begun = {**_OF_OLD, **named}
    tokens = begun.get("shard_tokens") if settings.shard_tokens is None else settings.shard_tokens
    return replace(
        settings,
        hidden=bool(begun["hidden"]),
        keep_fields=settings.keep_fields if begun["keep_fields"] != [NONE] else (NONE,),
        apart=settings.apart if "apart" in named else True,
        shard_tokens=tokens,
    )


def find_inputs(
    paths: Sequence[str | os.PathLike[str]],
    hidden: bool = False,
    suffixes: tuple[str, ...] = SUFFIXES_IN_FOLDERS,
) -> tuple[TokenizeInput, ...]:
    """The files of documents, by name. suffixes: of those that are taken from folders.

    Raises ConfigError where a path does not exist, holds none, or belongs to an unfinished
    cleaning.
    """
    urls = sorted({os.fspath(path) for path in paths if is_url(path)})
    here = [Path(path) for path in paths if not is_url(path)]
    files = sorted({file.absolute() for path in here for file in _files(path, hidden, suffixes)})
    elsewhere = {file.path: file for url in urls for file in _remote_files(url, hidden, suffixes)}
    if not files and not elsewhere:
        others = not_read(paths, suffixes)
        raise ConfigError(
            f"no documents in {_listed(paths)}; files of these kinds are: {', '.join(suffixes)}"
            + (f"; {others}" if others else "")
        )
    top = os.path.commonpath([file.parent for file in files]) if files else ""
    remote = (TokenizeInput(path, *elsewhere[path]) for path in sorted(elsewhere))
    return (*(_input(file, top) for file in files), *remote)


def parts(file: TokenizeInput) -> list[FilePart]:
    """A plain file's stretches of about UNIT_BYTES, or another file as a whole."""
    if not is_splittable(file.path):
        return [FilePart(file.path, 0, file.size)]
    starts = range(0, max(1, file.size), UNIT_BYTES)
    return [FilePart(file.path, start, min(start + UNIT_BYTES, file.size)) for start in starts]


def units_of(inputs: Sequence[TokenizeInput], chosen: Iterable[int]) -> list[Unit]:
    """The parts of the chosen inputs, numbered in their order."""
    found = [(k, part) for k in chosen for part in parts(inputs[k])]
    return [Unit(number, k, part) for number, (k, part) in enumerate(found)]


def check_apart(out: Path, paths: Iterable[str | os.PathLike[str]]) -> None:
    """Raise ConfigError where the output would lie within an input."""
    for path in (Path(path) for path in paths if not is_url(path)):
        if out.resolve().is_relative_to(path.resolve()):
            raise ConfigError(
                f"{out} lies within the input {path}, of which it would become a part; "
                "take a folder beside it"
            )


def settle(plan: TokenizePlan, out: Path) -> str:
    """Write OUT/plan.json, or compare with the one there; its digest. Tasks may do so at once."""
    identity = json.loads(json.dumps(_identity(plan)))
    path = out / PLAN
    if not path.exists():
        others = [name for name in OURS if (out / name).exists()]
        if others and not path.exists():  # another task writes it before anything else
            raise ConfigError(
                f"{out} holds {', '.join(others)} without {PLAN}, and they would be written over; "
                "choose another folder"
            )
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, identity)
    check_same(out, read_json(path, "it was removed just now"), identity)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _identity(plan: TokenizePlan) -> dict[str, Any]:
    """The values that must be equal for a folder to be continued. Paths of files may differ."""
    settings = asdict(plan.settings)
    tokenizer = tokenizer_json(settings.pop("tokenizer"))
    settings["tokenizer_sha256"] = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    return {"version": VERSION, "settings": settings, "inputs": identity_of(plan.inputs)}


def identity_of(inputs: Sequence[TokenizeInput]) -> list[list[Any]]:
    """Names, sizes and times of the files."""
    return [[file.name, file.size, file.modified_ns] for file in inputs]


def check_same(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ConfigError where two identities, settings and inputs as in JSON, are not equal."""
    if differences := _differences(before, now):
        raise ConfigError(
            f"{out} was begun with other inputs or settings: {differences}; "
            "remove it, or choose another"
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    old, new = {**_OF_OLD, **before.get("settings", {})}, now["settings"]
    parts = [f"{k} was {old.get(k)}, is {new.get(k)}" for k in new if old.get(k) != new[k]]
    old_files, new_files = ({name: rest for name, *rest in x["inputs"]} for x in (before, now))
    gone, added = old_files.keys() - new_files.keys(), new_files.keys() - old_files.keys()
    changed = [
        name for name in new_files if new_files[name] != old_files.get(name, new_files[name])
    ]
    for names, verb in ((gone, "missing"), (added, "new"), (changed, "changed")):
        if names:
            parts.append(f"{len(names)} inputs {verb} ({_listed(sorted(names))})")
    return "; ".join(parts)


def check_names(names: Mapping[str, str]) -> None:
    """Raise ConfigError where a name is unknown, or a field would be two things."""
    _check_known("names", names, NAMES)
    for called in names.values():
        same = [name for name in NAMES if names.get(name, name) == called]
        if len(same) > 1:
            raise ConfigError(
                f"names: {' and '.join(same)} would both be read from the field {called}; "
                "give one of them another field"
            )


def _check_known(option: str, given: Iterable[str], valid: Sequence[str]) -> None:
    for name in given:
        if name not in valid:
            raise ConfigError(f"{option}: {name} is unknown; valid: {', '.join(valid)}")


def _check(settings: Settings) -> None:
    check_names(settings.names)
    if fault := fault_of(settings.keep_fields):
        raise ConfigError(fault)
    _check_known("defaults", settings.defaults, DEFAULTED)
    for name, value in settings.defaults.items():
        if not 0 < len(value) <= LONGEST_LABEL:
            raise ConfigError(f"defaults: {name} needs 1 to {LONGEST_LABEL} characters")
    sizes = {"shard_tokens": settings.most_tokens, "group_bytes": settings.group_bytes}
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} = {size} is not positive")
    if settings.pack and not SHORTEST_ROW <= settings.pack <= settings.most_tokens:
        raise ConfigError(
            f"pack = {settings.pack:,}; valid: from {SHORTEST_ROW} to the "
            f"{settings.most_tokens:,} tokens that a shard has at most, or 0 for text as it comes"
        )


def _input(file: Path, top: str) -> TokenizeInput:
    status = file.stat()
    return TokenizeInput(
        file.relative_to(top).as_posix(), str(file), status.st_size, status.st_mtime_ns
    )


def _files(path: Path, hidden: bool, suffixes: tuple[str, ...]) -> Iterable[Path]:
    if path.is_dir():
        check_result(path)
        return [p for p in files_within(path, hidden) if p.name.endswith(suffixes)]
    if not path.exists():
        raise ConfigError(f"{path} does not exist")
    known = (*suffixes, ".json")  # beside documents, .json is mostly something else
    if not path.name.endswith(known):
        raise ConfigError(
            f"{path} is not a file of documents by its name; known: {', '.join(known)}"
        )
    return [path]


def _remote_files(url: str, hidden: bool, suffixes: tuple[str, ...]) -> Iterator[RemoteFile]:
    """Files at a URL; of a folder without hidden ones."""
    found = files_below(url)
    is_file = len(found) == 1 and found[0].below(url) == ""
    for file in found:
        is_seen = hidden or is_file or not any(s[:1] == "." for s in file.below(url).split("/"))
        if is_seen and file.path.endswith((*suffixes, ".json") if is_file else suffixes):
            yield file


def _groups(inputs: Sequence[TokenizeInput], group_bytes: int) -> Iterator[range]:
    start = size = 0
    for k, file in enumerate(inputs):
        size += file.size
        if size >= group_bytes:
            yield range(start, k + 1)
            start, size = k + 1, 0
    if start < len(inputs):
        yield range(start, len(inputs))


def _listed(names: Sequence[object]) -> str:
    return ", ".join(map(shown, names[:3])) + (", …" if len(names) > 3 else "")
