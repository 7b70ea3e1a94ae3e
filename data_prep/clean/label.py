"""Labels each document by itself: its form, language, domain, quality, contamination.

Each step is a datatrove pipeline step and can stand in other pipelines. A document that a step
rejects gets the reason as its label `_dropped`, is left alone by the steps after it, and is counted
and put aside by the last.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep import quality
from data_prep.bounds import ProseBounds, QualityBounds
from data_prep.classifiers import classifier
from data_prep.clean.own_steps import OwnStep
from data_prep.clean.settings import CleanSettings
from data_prep.domains import domain_of
from data_prep.language_id import Identifier, IdentifyLanguage, ModelIdentifier
from data_prep.languages import UNKNOWN, code_of
from data_prep.normalize import normalize
from data_prep.passages import Passages
from data_prep.units import Units, split
from megatron_qwen3.config import ConfigError

Look = Callable[[Document], str | None]
_TOGETHER = 1 << 18  # characters


class EachDocument(PipelineStep):  # type: ignore[misc]
    """A step that looks at one document at a time; it may change it, or drop it with a reason."""

    type = "🏷 - LABEL"

    def __init__(self, name: str, look: Look) -> None:
        self.name = name
        super().__init__()
        self._look = look

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for documents in _together(data):
            with self.track_time("batch"):
                for document in documents:
                    if "_dropped" not in document.metadata:
                        self._look_at(document)
            yield from documents

    def _look_at(self, document: Document) -> None:
        text = document.text
        reason = self._look(document)
        if document.text is not text:
            document.metadata.pop("_units", None)  # they were another text's
        if reason:
            document.metadata["_dropped"] = reason
            self.stat_update(f"dropped: {reason}")


def _together(data: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in their order, some at a time.

    A step looks at all of these before the next one does, so that its tables, of all code points or
    of languages, stay in the processor's caches.
    """
    waiting, size = list[Document](), 0
    for document in data:
        waiting.append(document)
        size += len(document.text)
        if size > _TOGETHER:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting


def labelling(settings: CleanSettings) -> list[EachDocument]:
    """The steps in the recipe's order, without those that have nothing to do."""
    looks = ((step, _look(step, settings)) for step in settings.steps)
    return [EachDocument(step, look) for step, look in looks if look is not None]


def _look(step: str, settings: CleanSettings) -> Look | None:
    """The function of a step; None where the settings give it nothing to do."""
    models = settings.models
    match step:
        case "domain":
            return _Domain(models.get("domain"))
        case "normalize":
            return _normalize
        case "language":
            return _Language(settings, models.get("language"))
        case "quality":
            return _Quality(settings.filters, models, settings.quality)
        case "scores":
            scores = {name: file for name, file in models.items() if name in _SCORES}
            return _Models(scores, settings) if scores else None
        case "contamination":
            return EvaluationSets(settings) if settings.decontaminate_against else None
    own = OwnStep(step, settings.options.get(step, {}))
    own.check()
    return own


def units_of(document: Document) -> Units:
    """The units of a document's text, which all steps share."""
    units: Units | None = document.metadata.get("_units")
    if units is None:
        units = document.metadata["_units"] = split(document.text)
    return units


def _normalize(document: Document) -> str | None:
    document.text = normalize(document.text, document.metadata["domain"] == "code")
    return None if document.text else "empty"


class _Domain:
    def __init__(self, model: str | None) -> None:
        self._model = classifier(model) if model else None

    def __call__(self, document: Document) -> None:
        if document.metadata["domain"] is None:
            guess = domain_of(document.text)
            if self._model and guess != "code":
                guess, _ = self._model.best(document.text)
            document.metadata["domain"] = guess


class _Language:
    """Labels the language, where the document does not say it, and drops unwanted languages."""

    def __init__(self, settings: CleanSettings, model: str | None) -> None:
        sample = settings.language_sample
        self._identify: IdentifyLanguage = (
            ModelIdentifier(model, sample) if model else Identifier(sample)
        )
        self._asked = frozenset(settings.languages)
        self._undetermined = settings.undetermined

    def __call__(self, document: Document) -> str | None:
        labels = document.metadata
        if labels["language"] is not None:
            labels["language"] = code_of(labels["language"])
        elif labels["domain"] == "code":
            labels["language"] = UNKNOWN  # of comments, at most
        else:
            labels["language"] = self._identify(document.text)
        if labels["domain"] == "code":
            return None
        if labels["language"] == UNKNOWN:
            return None if self._undetermined else "language unknown"
        wanted = not self._asked or labels["language"] in self._asked
        return None if wanted else "language not asked for"


class _Quality:
    """Drops documents that break a rule; scores quality and education where none are given."""

    def __init__(self, filters: bool, models: Mapping[str, str], bounds: QualityBounds) -> None:
        self._filters, self._bounds = filters, bounds
        self._of_language: dict[str, ProseBounds] = {}
        self._scores = [name for name in ("quality", "education") if name not in models]

    def __call__(self, document: Document) -> str | None:
        labels, units = document.metadata, units_of(document)
        if labels["domain"] == "code":
            judged = quality.judge_code(document.text, units, self._bounds.code)
        else:
            language = labels["language"] or UNKNOWN
            bounds = self._of_language.get(language)
            if bounds is None:
                bounds = self._of_language[language] = self._bounds.of(language)
            judged = quality.judge(document.text, units, language, bounds)
        for name in self._scores:
            if labels[name] is None:
                labels[name] = getattr(judged, name)
        return judged.fault if self._filters else None


class EvaluationSets:
    """Drops what has passages of the evaluation files (`passages.py`); all hits are in `_hits`."""

    def __init__(self, settings: CleanSettings) -> None:
        self.passages = Passages(
            settings.decontaminate_against, settings.contamination_run, settings.tokenizer
        )

    def __call__(self, document: Document) -> str | None:
        hits = self.passages.hits(document.text, document.metadata.get("_units"))
        place = {"document": document.id, "file": document.metadata["file"]}
        document.metadata["_hits"] = [place | hit for hit in hits]
        return "contaminated" if hits else None


class _Models:
    """Scores by the user's classifiers, where the document has none; drops unsafe documents."""

    def __init__(self, files: dict[str, str], settings: CleanSettings) -> None:
        self._models = {name: classifier(file) for name, file in files.items()}
        self._min_safety, self._tops = settings.min_safety, settings.top_scores

    def __call__(self, document: Document) -> str | None:
        for name, model in self._models.items():
            if document.metadata.get(name) is None:
                outputs = model.outputs(document.text)
                document.metadata[name] = _score(outputs, name, self._tops.get(name))
        return "unsafe" if document.metadata.get("safety", 1.0) < self._min_safety else None


_SCORES = ("quality", "education", "safety")
_BETTER = ("high", "hq", "good", "positive", "safe", "educational", "yes")


def _score(outputs: dict[str, float], name: str, top: float | None) -> float:
    """One number as a share of `top`. Where labels are numbers their mean, as a share of the
    greatest; else the probability of the label for good text."""
    if len(outputs) == 1:
        (value,) = outputs.values()
        if top is None:
            raise ConfigError(
                f"the {name} model gives one number: say in the recipe which one counts as 1, as "
                f"[top_scores] {name} = 5 for marks from 0 to 5"
            )
        return round(min(1.0, max(0.0, value / top)), 4)
    try:
        values = {float(label): share for label, share in outputs.items()}
        score = sum(value * share for value, share in values.items()) / (max(values) or 1.0)
        return round(min(1.0, score), 4)
    except ValueError:
        pass
    for label, share in outputs.items():
        if label.lower() in (*_BETTER, name):
            return round(min(1.0, share), 4)
    raise ConfigError(
        f"the {name} model has the labels {', '.join(sorted(outputs))}; one of them must be "
        f"{', '.join(_BETTER)} or {name}, or all must be numbers"
    )
