"""Verifiers of form: JSON by a schema, tool calls, and the think block.

Each gives "" where the text is right, else the reason why it is wrong.
"""

import json
import re
from typing import Any, Literal, NoReturn

from megatron_qwen3.chat import END_THINK, END_TOOL_CALL, THINK, TOOL_CALL
from megatron_qwen3.posttrain.verifiers.final import CannotJudge

_FENCE = re.compile(r"```(?:json|JSON)?(?:[ \t]*\r?\n|(?=[ \t{\[\"]))(.*?)\s*```", re.S)
_NOTHING: Any = object()


def json_document(
    answer: str, *, schema: dict[str, Any] | None = None, equals: Any = _NOTHING
) -> str:
    """The whole answer, or the one block of code that it is, is JSON that fits a schema.

    schema: JSON Schema (2020-12, or the draft of its $schema); outside references are not fetched.
    equals: the value that the JSON must have. NaN and Infinity are not JSON.
    """
    validator = None if schema is None else _validator(schema)
    try:
        value = read_json(answer)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"[:200]
    if equals is not _NOTHING and not _is_equal(value, equals):
        return "the JSON is not the one asked for"
    fault = next(validator.iter_errors(value), None) if validator else None
    return f"{fault.json_path}: {fault.message}"[:200] if fault else ""


def read_json(answer: str) -> Any:
    """The value of a text that is JSON, in a fence of Markdown or without; else ValueError."""
    text = answer.strip()
    fenced = _FENCE.fullmatch(text)
    return json.loads(fenced.group(1) if fenced else text, parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _validator(schema: dict[str, Any]) -> Any:
    try:
        from jsonschema import exceptions, validators
        from referencing import Registry
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import specification_with
    except ImportError:
        raise CannotJudge(
            "a schema needs jsonschema, which is not installed: "
            "pip install 'megatron_qwen3[posttrain]'"
        ) from None
    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except exceptions.SchemaError as error:
        raise CannotJudge(f"schema is no JSON Schema: {error.message}"[:300]) from None
    registry: Any = Registry()  # an empty one: nothing is fetched
    validator = kind(schema, registry=registry)
    draft: Any = specification_with(kind.META_SCHEMA["$schema"])
    root = draft.create_resource(schema)
    try:
        _resolve(root, registry.resolver_with_root(root))
        next(validator.iter_errors(None), None)
    except RecursionError:
        raise CannotJudge("schema refers to itself without an end") from None
    except Unresolvable as error:
        raise CannotJudge(f"schema has a reference outside of itself: {error}"[:300]) from None
    return validator


def _resolve(resource: Any, resolver: Any) -> None:
    """Raise Unresolvable where a part of a schema, however deep, has an unknown reference."""
    if isinstance(resource.contents, dict):
        for name in ("$ref", "$dynamicRef"):
            if isinstance(reference := resource.contents.get(name), str):
                resolver.lookup(reference)
    for part in resource.subresources():
        _resolve(part, resolver.in_subresource(part))


def _is_equal(one: Any, other: Any) -> bool:
    """Equality of JSON: 1 is 1.0, and true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    return bool(one == other)


def calls(answer: str, *, gold: list[dict[str, Any]]) -> str:
    """The answer makes exactly these calls, {"name", "arguments"} each, in any order; other text
    may surround them. With an empty list it must make none, and have some text.
    """
    if any(set(one) != {"name", "arguments"} for one in gold):
        raise CannotJudge("gold: each call has a name and arguments, and nothing else")
    parts = re.findall(rf"{TOOL_CALL}(.*?){END_TOOL_CALL}", answer, re.S)
    if not answer.strip():
        return "the answer is empty"
    if not answer.count(TOOL_CALL) == answer.count(END_TOOL_CALL) == len(parts):
        return "a call is not closed, or stands within another"
    try:
        left = [read_json(part) for part in parts]
    except (ValueError, RecursionError) as error:
        return f"a call is no JSON: {error}"[:200]
    if len(left) != len(gold):
        return f"{len(left)} calls; asked: {len(gold)}"
    for wanted in gold:
        found = next((n for n, call in enumerate(left) if _is_equal(call, wanted)), None)
        if found is None:
            return f"without the call {json.dumps(wanted, ensure_ascii=False)}"[:200]
        del left[found]
    return ""


def think_format(text: str, *, mode: Literal["think", "no_think"]) -> str:
    """The text begins with one think block, closed and not nested, and an answer follows.

    In mode "think" the block has content; in mode "no_think" it is empty, or missing, as where the
    prompt contains the empty block.
    """
    opened, closed = text.count(THINK), text.count(END_THINK)
    if mode == "no_think" and not opened and not closed:
        return "" if text.strip() else "the answer is empty"
    if (opened, closed) != (1, 1):
        return f"{opened} {THINK} and {closed} {END_THINK}; asked: one of each"
    match = re.fullmatch(rf"\s*{THINK}(.*){END_THINK}(.*)", text, re.S)
    if not match:
        return f"the text does not begin with a block {THINK} … {END_THINK}"
    thinking, answer = match.groups()
    if bool(thinking.strip()) != (mode == "think"):
        return "the thinking is empty" if mode == "think" else "there is thinking"
    return "" if answer.strip() else "no answer follows the thinking"
