"""Steps of the user's own, named in a recipe as `module:Name` and imported for no other reason.

    step = OwnStep("mine:NoAdverts", {"most": 3})
    step.check()                   # ConfigError where it cannot be imported or made
    step(document)                 # the reason for dropping it, or None

Name is a function, called with a document and its options: def no_adverts(document, most=3); or
a class, made with its options, whose objects are such functions. They give None for what is to stay
or the reason, a few words. They may change `document.text` and set labels in `document.metadata`.
datatrove's filters and formatters are such classes too, as they are:

    steps = ["domain", "datatrove.pipeline.filters:URLFilter", "normalize", …]
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

from datatrove.data import Document

from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown


class OwnStep:
    """Imported at its first document in each process."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name, self._options = name, dict(options)

    def __call__(self, document: Document) -> str | None:
        try:
            reason = self._look(document)
        except ConfigError:
            raise
        except Exception as error:  # of code that somebody else wrote
            raise ConfigError(
                f"step {self.name} failed at document {shown(document.id)} of "
                f"{shown(document.metadata.get('file'))} ({type(error).__name__}: {shown(error)})"
            ) from error
        if reason is None or isinstance(reason, str):
            return reason or None
        raise ConfigError(
            f"step {self.name} gave {reason!r:.80}; valid: None, or the reason to drop a document"
        )

    def check(self) -> None:
        """Import and make it."""
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

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "_options": self._options}


def file_of(name: str) -> str | None:
    """The file of a step's module, where it has one."""
    try:
        found = importlib.util.find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return found.origin if found and found.has_location else None


def _filtered(of: Callable[[Document], Any], document: Document) -> str | None:
    """What datatrove's filters give: whether it stays, maybe with the reason why not."""
    kept = of(document)
    kept, reason = kept if isinstance(kept, tuple) else (kept, "filtered")
    return None if kept else str(reason)


def _formatted(of: Callable[[str], str], document: Document) -> None:
    document.text = of(document.text)
