"""Reads queries, one JSON object per line: `queries, problems = read(paths)`.

    {"id": "a1", "messages": [{"role": "user", "content": "…"}], "domain": "math", "source": "…",
     "verifier": {"kind": "math", "gold": "42"}}

The last message is a user's. A line may also have `tools`; `checklist`, a list of statements that
hold for a good answer; and fields for reinforcement learning: `gold`, a right answer as text;
`tests` of code, in place of a verifier; `language`; and `rewards`, weights of parts. Without an
`id` a query is named by its file and line; without a `source` by its domain, without that by its
file. An invalid line becomes a QueryProblem; reading goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.damaged import DamagedFile
from data_prep.labels import LONGEST_LABEL
from data_prep.lines import blocks
from megatron_qwen3.chat_check import ChatError, check
from megatron_qwen3.config import ConfigError

_LONGEST_LINE_BYTES = 1 << 24
_KINDS: dict[str, type] = {
    "id": str,
    "domain": str,
    "source": str,
    "gold": str,
    "language": str,
    "verifier": dict,
    "rewards": dict,
}
_LONGEST = {"id": 200, "domain": LONGEST_LABEL, "source": LONGEST_LABEL}  # characters


@dataclass(frozen=True)
class Query:
    """One line. place: its file and line."""

    id: str
    messages: tuple[Mapping[str, Any], ...]
    place: str
    domain: str = ""
    source: str = ""
    verifier: Mapping[str, Any] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    checklist: tuple[str, ...] = ()
    gold: str = ""
    language: str = ""
    rewards: Mapping[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last message, which is the query itself."""
        return str(self.messages[-1]["content"])

    def without_verifier(self) -> Query:
        return replace(self, verifier=None)

    @property
    def conversation(self) -> str:
        """All messages as text; with a single message, that message's text."""
        if len(self.messages) == 1:
            return self.text
        return "\n\n".join(f"{m['role']}: {m.get('content') or ''}" for m in self.messages)


class QueryProblem(NamedTuple):
    """Why a line was skipped. line: from 1; kind: one of a few, for counting."""

    file: str
    line: int
    kind: str
    detail: str


def read(paths: Sequence[Path], stop_at_problem: bool) -> tuple[list[Query], list[QueryProblem]]:
    """The queries of all files in order, ids unique. ConfigError where a file cannot be read, or
    with stop_at_problem at the first bad line."""
    queries: dict[str, Query] = {}
    problems: list[QueryProblem] = []
    for path in paths:
        for found in _of_file(path):
            if isinstance(found, Query) and found.id in queries:
                file, _, line = found.place.rpartition(":")
                before = queries[found.id].place
                found = QueryProblem(file, int(line), "id again", f"{found.id} is that of {before}")
            if isinstance(found, Query):
                queries[found.id] = found
                continue
            if stop_at_problem:
                raise ConfigError(f"{found.file}:{found.line}: {found.kind}: {found.detail}")
            problems.append(found)
    if not queries:
        told = f"; the first problem: {_named(problems[0])}" if problems else ""
        raise ConfigError(f"{', '.join(map(str, paths))}: not one query{told}")
    return list(queries.values()), problems


def _named(problem: QueryProblem) -> str:
    return f"{problem.file}:{problem.line}: {problem.kind}: {problem.detail}"


def _of_file(path: Path) -> Iterator[Query | QueryProblem]:
    number = 0
    try:
        for lines, _ in blocks(str(path), 0, os.path.getsize(path), _LONGEST_LINE_BYTES):
            for line in lines:
                number += 1
                if line.strip():
                    yield _of_line(path, number, line)
    except DamagedFile as error:
        yield QueryProblem(str(path), number + 1, "damaged file", str(error))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None


def _of_line(path: Path, number: int, line: bytes) -> Query | QueryProblem:
    def problem(kind: str, detail: str) -> QueryProblem:
        return QueryProblem(str(path), number, kind, detail)

    if len(line) > _LONGEST_LINE_BYTES:
        return problem("too long", f"over {_LONGEST_LINE_BYTES >> 20} MiB")
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # fails for half a surrogate pair
    except (ValueError, RecursionError) as error:
        return problem("not JSON", f"{type(error).__name__}: {error}"[:200])
    if isinstance(row, dict):
        row |= {name: str(row[name]) for name in ("id", "gold") if type(row.get(name)) is int}
    if fault := _fault(row):
        return problem("not a query", fault)
    domain = row.get("domain") or ""
    verifier = row.get("verifier")
    if verifier is None and row.get("tests"):
        verifier = {"kind": "code", "tests": row["tests"]}
    return Query(
        row.get("id") or f"{path.name}:{number}",
        tuple(row["messages"]),
        f"{path}:{number}",
        domain,
        row.get("source") or domain or path.name.partition(".")[0][:LONGEST_LABEL],
        verifier,
        tuple(row.get("tools") or ()),
        tuple(row.get("checklist") or ()),
        row.get("gold") or "",
        row.get("language") or "",
        row.get("rewards") or {},
    )


def _fault(row: Any) -> str:
    """The fault of a line's content; "" where there is none."""
    if not isinstance(row, dict):
        return "not an object"
    for name, kind in _KINDS.items():
        if not isinstance(row.get(name), kind | None):
            return f"{name} = {row[name]!r:.80}; valid: {'text' if kind is str else 'an object'}"
        if name in _LONGEST and len(row.get(name) or "") > _LONGEST[name]:
            return f"{name} has more than {_LONGEST[name]} characters"
    for name, kind in (("tools", dict), ("checklist", str)):
        value = row.get(name) or []
        if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
            return (
                f"{name} = {value!r:.80}; valid: a list of {'objects' if kind is dict else 'texts'}"
            )
    return _messages_fault(row.get("messages"), row.get("tools"))


def _messages_fault(messages: Any, tools: Any) -> str:
    """The fault of messages, which must end with a user's; "" where there is none."""
    if not isinstance(messages, list) or not messages:
        return "messages are no list, or an empty one"
    try:
        check(messages, tools)
    except ChatError as error:
        return str(error)
    for k, message in enumerate(messages[1:], 1):
        if message["role"] == "system":
            return f"message {k} is a system message that is not the first"
    last = messages[-1]
    if last["role"] != "user" or not last["content"].strip():
        return "the last message is no user's, or has no text"
    return ""
