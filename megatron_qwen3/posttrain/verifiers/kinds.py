"""The kinds of verifiers by name, and the verdict of a spec on an answer.

    KINDS["exact"]("42", gold="42")                    # "": right; else why the answer is wrong
    check_spec({"kind": "exact", "gold": "42"})        # ConfigError where the spec is invalid
    verdict({"kind": "exact", "gold": "42"}, "<think>…</think>\n\n42")   # in this process

The fields of a kind are the keyword arguments of its function, with the types of their annotations.
"""

import contextlib
import inspect
import types
import typing
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from megatron_qwen3.chat import END_THINK, THINK
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.verifiers import (
    algebra,
    code,
    countdown,
    gym,
    ifeval,
    mathematics,
    simple,
    structure,
)
from megatron_qwen3.posttrain.verifiers.final import CannotJudge, after_thinking
from megatron_qwen3.toml import did_you_mean

Spec = Mapping[str, Any]
Check = Callable[..., str]


@dataclass(frozen=True)
class Verdict:
    """score: 1.0 right, 0.0 wrong, None where it could not be judged; reason: "" where right."""

    score: float | None
    reason: str


def every(text: str, *, specs: list[dict[str, Any]]) -> str:
    """Right where all specs find the text right; specs on thinking get it as well."""
    if not specs:
        raise CannotJudge("specs is an empty list, which every answer would satisfy")
    for spec in specs:
        _check_fields(spec)
        if reason := _judged(spec, text):
            return f"{spec['kind']}: {reason}"
    return ""


def every_instruction(
    text: str, *, instruction_id_list: list[str], kwargs: list[dict[str, Any]]
) -> str:
    """A row of Google's IFEval: right where all its instructions are followed."""
    if not instruction_id_list:
        raise CannotJudge("instruction_id_list is empty, which every answer would satisfy")
    return every(text, specs=_instructions(instruction_id_list, kwargs))


def _instructions(names: list[str], kwargs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The specs of a row, without the nulls that the data set writes for unused arguments."""
    if len(names) != len(kwargs):
        raise CannotJudge(f"{len(names)} instruction_id_list, {len(kwargs)} kwargs; valid: as many")
    fields = [{key: value for key, value in one.items() if value is not None} for one in kwargs]
    return [{"kind": f"ifeval/{name}"} | one for name, one in zip(names, fields, strict=True)]


KINDS: dict[str, Check] = {
    "math": mathematics.math,
    "choice": simple.choice,
    "exact": simple.exact,
    "numeric": simple.numeric,
    "length": simple.length,
    "language": simple.language,
    "cited": simple.cited,
    "json": structure.json_document,
    "calls": structure.calls,
    "think_format": structure.think_format,
    "countdown": countdown.countdown,
    "code": code.code,
    "reasoning_gym": gym.reasoning_gym,
    "every": every,
    "ifeval": every_instruction,
    **{f"ifeval/{name}": check for name, check in ifeval.INSTRUCTIONS.items()},
}
# These get the whole text: they judge the thinking, or pass it on to their parts.
WITH_THINKING = ("think_format", "every", "ifeval")
# These get the text unchanged: programs depend on each character; the others leave it to their
# parts.
_AS_IT_IS = ("code", "every", "ifeval")


def verdict(spec: Spec, text: str) -> Verdict:
    """Judge a model's text, thinking and answer, in this process and without a time limit.

    A verifier that raises gives a verdict without a score.
    """
    try:
        _check_fields(spec)
        reason = _judged(spec, text)
    except CannotJudge as error:
        return Verdict(None, f"cannot be judged: {error}")
    except Exception as error:  # a library may fail on untrusted text
        return Verdict(None, f"error: {type(error).__name__}: {error}"[:500])
    return Verdict(0.0, reason) if reason else Verdict(1.0, "")


def check_spec(spec: Spec) -> None:
    """ConfigError, in one line, where this spec could judge no answer."""
    _check_fields(spec)
    try:
        parts = _parts(spec)
        if not parts:
            _check(spec, "")  # checks that the values of its fields agree
    except CannotJudge as error:
        raise ConfigError(f"verifier {spec['kind']}: {error}") from None
    for one in parts:
        check_spec(one)


def _check_fields(spec: Spec) -> None:
    """ConfigError unless the kind is known, and its fields are complete, known and of their
    types."""
    kind = spec.get("kind") if isinstance(spec, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        guess = did_you_mean(str(kind), KINDS) or f"; valid: {', '.join(KINDS)}"
        raise ConfigError(f"verifier kind = {kind!r} is no kind of verifier{guess}")
    fields = _fields(KINDS[kind])
    given = {name for name in spec if name != "kind"}
    if unknown := given - set(fields):
        name = sorted(unknown)[0]
        guess = did_you_mean(name, fields) or f"; valid: {', '.join(fields)}"
        raise ConfigError(f"verifier {kind}: {name} is no field of it{guess}")
    for name, field in fields.items():
        if name in given and not _is_a(spec[name], field.type):
            raise ConfigError(
                f"verifier {kind}: {name} = {spec[name]!r:.80}; valid: {_named(field.type)}"
            )
        if name not in given and field.is_needed:
            raise ConfigError(f"verifier {kind} needs {name}; its fields: {', '.join(fields)}")


def prepare(spec: Spec) -> None:
    """Load the modules of a kind once, which takes seconds. The verdict reports errors."""
    with contextlib.suppress(Exception):
        if load := _LOADS.get(spec["kind"]):
            load()
        for one in _parts(spec):
            prepare(one)


_LOADS: dict[str, Callable[[], object]] = {
    "math": algebra.load,
    "code": code.load,
    "reasoning_gym": gym.load,
    "language": simple.load_languages,
    "ifeval/language:response_language": simple.load_languages,
    "ifeval/change_case:english_capital": simple.load_languages,
    "ifeval/change_case:english_lowercase": simple.load_languages,
}


def own_seconds(spec: Spec) -> float:
    """The time that a kind's own limits allow, such as for running programs, besides judging."""
    with contextlib.suppress(Exception):
        _check_fields(spec)
        if spec["kind"] == "code":
            return code.most_seconds(spec["tests"], spec.get("seconds", code.SECONDS))
        return sum(map(own_seconds, _parts(spec)))
    return 0.0  # of an invalid spec, which the verdict reports


def _parts(spec: Spec) -> list[dict[str, Any]]:
    """The specs that a compound spec consists of; [] for others."""
    if spec["kind"] == "ifeval":
        return _instructions(spec["instruction_id_list"], spec["kwargs"])
    return list(spec["specs"]) if spec["kind"] == "every" else []


def _judged(spec: Spec, text: str) -> str:
    """Why the text is wrong, or ""; most kinds get it without its thinking."""
    if spec["kind"] in WITH_THINKING:
        return _check(spec, text)
    answer = after_thinking(text)
    return f"{THINK} without {END_THINK}" if answer is None else _check(spec, answer)


def _check(spec: Spec, answer: str) -> str:
    fields = {name: value for name, value in spec.items() if name != "kind"}
    if spec["kind"] not in _AS_IT_IS:
        fields, answer = _composed(fields), _composed(answer)
    reason = KINDS[spec["kind"]](answer, **fields)
    follows_nothing = spec["kind"].startswith("ifeval") and not answer.strip()
    return reason or ("the answer is empty" if follows_nothing else "")


def _composed(value: Any) -> Any:
    """The value in NFC, so that both encodings of an accented letter are equal."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, list):
        return [_composed(one) for one in value]
    if isinstance(value, dict):
        return {_composed(name): _composed(one) for name, one in value.items()}
    return value


@dataclass(frozen=True)
class _Field:
    type: Any
    is_needed: bool


@cache
def _fields(check: Check) -> dict[str, _Field]:
    """The fields of a kind: the keyword arguments of its function."""
    hints = typing.get_type_hints(check)
    return {
        name: _Field(hints[name], parameter.default is inspect.Parameter.empty)
        for name, parameter in inspect.signature(check).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _is_a(value: Any, wanted: Any) -> bool:
    """Whether a value of JSON is of the type that an annotation names."""
    kind, options = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return True
    if kind is Literal:
        return value in options
    if kind in (types.UnionType, typing.Union):
        return any(_is_a(value, option) for option in options)
    if kind is list:
        return isinstance(value, list) and all(_is_a(one, options[0]) for one in value)
    if kind is dict:
        return isinstance(value, dict)
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, wanted)


def _named(wanted: Any) -> str:
    """The type's name in terms of JSON."""
    kind, options = typing.get_origin(wanted), typing.get_args(wanted)
    if kind is Literal:
        return " or ".join(f'"{option}"' for option in options)
    if kind in (types.UnionType, typing.Union):
        return " or ".join(map(_named, options))
    if kind is list:
        return f"a list, each of it {_named(options[0])}"
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(kind or wanted, "null" if wanted is type(None) else "an object")
