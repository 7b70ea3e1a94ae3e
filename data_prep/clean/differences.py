"""How settings of two commands for one cleaning differ, for the message that refuses the second.

    differences(begun, asked)       # "similarity was 0.75, is 0.8; …"
    changed_files(before, now)      # "dumps/a.jsonl, dumps/b.jsonl, …"

Settings are tables as JSON has them; files are by name, with size and time of change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from megatron_qwen3.shown import shown

_SHOWN_DIFFERENCES = 5
_SHOWN_CHARACTERS = 160  # of a value in a difference


def changed_files(before: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> str:
    """The first files that are new, gone or changed."""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first settings that differ, by their dotted names, with both values."""
    old, new = (dict(_leaves(tree, "")) for tree in (before, now))
    names = [
        name
        for name in [*new, *(name for name in old if name not in new)]
        if old.get(name) != new.get(name) and name.partition(".")[0] in now
    ]
    told = [f"{name} was {_value(old, name)}, is {_value(new, name)}" for name in names]
    return "; ".join(told[:_SHOWN_DIFFERENCES]) + ("; …" if len(told) > _SHOWN_DIFFERENCES else "")


def _leaves(tree: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}{key}.")
        elif not (name + key).startswith("files."):
            yield name + key, value


def _value(values: Mapping[str, Any], name: str) -> str:
    text = shown(json.dumps(values[name], ensure_ascii=False)) if name in values else "not there"
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
