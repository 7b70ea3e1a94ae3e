"""Runs a user's own steps, named in a recipe as `module:Name` and imported for no other reason.

    step = OwnStep("mine:NoAdverts", {"most": 3})
    step.check()                   # ConfigError where it cannot be imported or made
    step(document)                 # the reason for dropping it, or None

Name is a function, called with a document and its options: def no_adverts(document, most=3); or
a class, made with its options, whose objects are such functions. They give None for a document that
stays, or the reason for dropping it, a few words. They may change `document.text` and set labels in
`document.metadata`; both are checked after each document. datatrove's filters and formatters are
such classes too, as they are:

    steps = ["domain", "datatrove.pipeline.filters:RegexFilter", "normalize", …]

Those that depend on the documents before, as its PIIFormatter does, or on files that they fetch, as
its URLFilter does, give other results with other numbers of tasks: web_steps.py has both without.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import msgspec
import numpy as np
from datatrove.data import Document

from data_prep.documents import Label, Share
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown

MOST_REASONS = 1000  # of a step, in each process: the report has a row for each
LONGEST_REASON = 200  # characters


class _Left(msgspec.Struct):
    """The text and labels that a document needs after a step; others are any that JSON takes."""

    text: str
    id: str
    file: str
    source: Label
    language: Label | None
    domain: Label | None
    quality: Share | None
    education: Share | None


class OwnStep:
    """A step of the user's own, imported at its first document in each process."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name, self._options = name, dict(options)
        self._reasons: set[str] = set()

    def __call__(self, document: Document) -> str | None:
        name, file = document.id, document.metadata.get("file")
        try:
            reason = self._look(document)
        except ConfigError:
            raise
        except Exception as error:  # of code that somebody else wrote
            raise ConfigError(
                f"step {self.name} failed at document {shown(name)} of {shown(file)} "
                f"({type(error).__name__}: {shown(error)})"
            ) from error
        if fault := _fault_of(document):
            raise ConfigError(
                f"step {self.name} left document {shown(name)} of {shown(file)} without {fault}"
            )
        if reason is None or isinstance(reason, str):
            return self._known(reason) if reason else None if document.text else "empty"
        raise ConfigError(
            f"step {self.name} gave {reason!r:.80}; valid: None, or the reason to drop a document"
        )

    def _known(self, reason: str) -> str:
        """The reason; ConfigError where there are too many different ones to count by."""
        self._reasons.add(reason)
        if len(self._reasons) > MOST_REASONS or len(reason) > LONGEST_REASON:
            raise ConfigError(
                f"step {self.name} gave over {MOST_REASONS:,} different reasons, or a long one "
                f"({shown(reason):.80}); valid: a few words that many documents share"
            )
        return reason

    def check(self) -> None:
        """Import and make the step."""
        self._look  # noqa: B018

    @cached_property
    def _look(self) -> Callable[[Document], Any]:
        try:
            made = self._made()
        except ConfigError:
            raise
        except Exception as error:  # as above; datatrove says so of packages that it lacks
            raise ConfigError(
                f"step {self.name} cannot be made with the options {self._options} "
                f"({type(error).__name__}: {shown(error)})"
            ) from None
        if callable(getattr(made, "filter", None)):
            return partial(_filtered, made.filter)
        if callable(getattr(made, "format", None)):
            return partial(_formatted, made.format)
        if callable(made) and not hasattr(made, "run"):
            return made  # type: ignore[no-any-return]
        raise ConfigError(
            f"step {self.name} is nothing that is called with a document; valid: a function, a "
            "class of functions, a filter or formatter of datatrove"
        )

    def _made(self) -> Any:
        module, _, name = self.name.partition(":")
        try:
            own = getattr(importlib.import_module(module), name)
        except Exception as error:  # as above
            raise ConfigError(
                f"step {self.name} cannot be imported ({type(error).__name__}: {shown(error)}); "
                "valid: module:Name with the module on PYTHONPATH"
            ) from None
        return own(**self._options) if inspect.isclass(own) else partial(own, **self._options)

    def __reduce__(self) -> Any:
        return OwnStep, (self.name, self._options)


def file_of(name: str) -> str | None:
    """The file of a step's module, where it has one."""
    try:
        found = importlib.util.find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return found.origin if found and found.has_location else None


def _fault_of(document: Document) -> str:
    """The fault of a document's text or labels that later steps and the result need, or ""."""
    labels = document.metadata
    if not isinstance(labels, dict):
        return f"metadata that are a table: {labels!r:.80}"
    try:
        msgspec.convert({**labels, "text": document.text, "id": document.id}, _Left)
    except msgspec.ValidationError as error:
        return f"a text and labels as they have to be: {shown(error)}"
    for name, value in {**labels, "text": document.text, "id": document.id}.items():
        try:
            if not isinstance(name, str) or name[:1] != "_":  # others are a step's own
                msgspec.json.encode({name: value})
        except (TypeError, ValueError, RecursionError) as error:
            return f"a {shown(name)} that can be written: {shown(error)}"
    return ""


def _filtered(of: Callable[[Document], Any], document: Document) -> str | None:
    """The answer of datatrove's filters: None for a document that stays, or the reason."""
    given = of(document)
    kept, reason = given if isinstance(given, tuple) else (given, "filtered")
    if not (isinstance(kept, bool | np.bool_) and isinstance(reason, str)):
        raise TypeError(f"it gave {given!r:.80}; valid: true or false, or (false, the reason)")
    return None if kept else reason


def _formatted(of: Callable[[str], str], document: Document) -> None:
    document.text = of(document.text)
