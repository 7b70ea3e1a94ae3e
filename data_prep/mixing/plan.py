"""Plans a curriculum: how many tokens of every source each stage reads, and which ones.

    curriculum = plan(inventory, recipe)

Cells that agree in source, language, domain and every label that the recipe decides by are one
source. A stage's sequences are divided three times, each time exactly: into the fractions that
`shares` asks for, those among languages, and those among the sources of a language. A source goes
on where the stage before left it, and none is read more often than `max_epochs` allows: then others
of its group take over, and where the whole group is used up the plan is refused with the numbers.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from data_prep.curriculum import Curriculum, Source, Stage, StageShare
from data_prep.inventory import Inventory
from data_prep.labels import LENGTHS, LEVELS, UNKNOWN, Labels
from data_prep.languages import LANGUAGES
from data_prep.languages import UNKNOWN as UNDETERMINED
from data_prep.mixing.divided import divided
from data_prep.mixing.recipe import CellShare, Recipe, StageRecipe
from data_prep.mixing.sampling import fill, language_preferences, rounded
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import counted
from megatron_qwen3.toml import did_you_mean

ALWAYS = ("source", "language", "domain")  # labels that keep sources apart in every curriculum
NO_LANGUAGE = (
    UNDETERMINED,
    UNKNOWN,
)  # code, mostly: keeps its natural share when languages are sampled
DOMAINS = ("web", "code", "stem", "reasoning", "books", "reference", "synthetic", "dialog")
# Values that a recipe may give a weight although no shard has them.
_KNOWN = {
    "language": (*LANGUAGES, *NO_LANGUAGE),
    "domain": DOMAINS,
    "quality": (*LEVELS, UNKNOWN),
    "education": (*LEVELS, UNKNOWN),
    "length": LENGTHS,
}
_SMALLEST_HELD_OUT = 20  # windows that a source has at least of which one is held out


def plan(
    inventory: Inventory,
    recipe: Recipe,
    marks: Mapping[str, str] | None = None,
    read_before: Callable[[Sequence[Source]], Mapping[str, int]] | None = None,
) -> Curriculum:
    """The curriculum of all stages.

    marks: by path of a shard, the mark of its contents (`data_prep/fingerprint.py`);
    read_before: says, by name, how many tokens of which of these sources were trained on before the
    first stage. ConfigError where the recipe names labels that nothing has, or asks for more tokens
    than there are.
    """
    sources = sources_of(inventory, recipe, marks or {})
    _check_values(inventory, recipe)
    return planned(inventory, recipe, sources, read_before(sources) if read_before else {})


def planned(
    inventory: Inventory,
    recipe: Recipe,
    sources: Sequence[Source],
    before: Mapping[str, int] | None = None,
) -> Curriculum:
    """The curriculum of sources that are known, for who plans many mixtures of them.

    before: by name, tokens that were trained on; ConfigError as `plan`, but for values of labels.
    """
    _check_lengths(inventory, recipe, sources)
    before = before or {}
    cursors = {source.name: before.get(source.name, 0) for source in sources}
    stages = []
    for stage in recipe.stages:
        sequences = _divide(stage, sources, cursors)
        shares = tuple(
            StageShare(source, n * stage.sequence_length, cursors[source.name])
            for source, n in zip(sources, sequences, strict=True)
        )
        stages.append(Stage(stage.name, stage.sequence_length, stage.max_epochs, shares))
        for share in shares:
            cursors[share.source.name] += share.tokens
    return Curriculum(recipe.seed, inventory.tokenizer, inventory.vocab_size, tuple(stages))


def sources_of(inventory: Inventory, recipe: Recipe, marks: Mapping[str, str]) -> list[Source]:
    """Cells of equal labels as sources, in the order of their first; marks: of shards, by path."""
    labels = [name for name in Labels._fields if name in ALWAYS or name in recipe.labels]
    together = divided(inventory, labels, marks)
    shortest = min(stage.sequence_length for stage in recipe.stages)
    _check_names((part.values for part in together), labels)
    sources = []
    for part in together:
        row = dict(zip(labels, part.values, strict=True))
        name = "/".join(part.values)
        source = Source(name, str(inventory.folder), part.shards, 0, row, part.packed)
        source = replace(source, held_out=_held_out(source, recipe, shortest))
        if source.training_tokens > 0:
            sources.append(source)
    if not sources:
        raise ConfigError(f"{inventory.folder}: the inventory has no tokens")
    return sources


def _check_names(together: Iterable[tuple[str, ...]], labels: Sequence[str]) -> None:
    """ConfigError where the labels of two sources make one name, which has a / in one of them."""
    names: dict[str, tuple[str, ...]] = {}
    for values in together:
        other = names.setdefault("/".join(values), values)
        if other != values:
            first, second = (
                ", ".join(map("=".join, zip(labels, row, strict=True))) for row in (other, values)
            )
            raise ConfigError(
                f"two sources would be named {'/'.join(values)}: {first}; and {second}; "
                "give one of them another label where the documents are tokenized"
            )


def _held_out(source: Source, recipe: Recipe, shortest: int) -> int:
    """The recipe's fraction, in whole rows; one window where that is less and the source is not
    tiny. shortest: of the stages' sequences."""
    window = shortest + (0 if source.packed else 1)
    wanted = min(math.ceil(source.tokens * recipe.held_out), recipe.held_out_tokens)
    if wanted and wanted < window:
        wanted = window if source.tokens >= _SMALLEST_HELD_OUT * window else 0
    return source.row_length * math.ceil(wanted / source.row_length)


def _check_lengths(inventory: Inventory, recipe: Recipe, sources: Sequence[Source]) -> None:
    """ConfigError where a stage's sequences would cut the rows of packed text."""
    for stage in recipe.stages:
        for source in sources:
            if refusal := source.refusal(stage.sequence_length):
                where = f"stages.{stage.name}.sequence_length = {stage.sequence_length:,}"
                raise ConfigError(
                    f"{where}: {inventory.folder}, {source.name}: {refusal}; a recipe of packed "
                    "text alone is examples/curriculum_long_context.toml"
                )


def _divide(stage: StageRecipe, sources: Sequence[Source], cursors: Mapping[str, int]) -> list[int]:
    """Sequences of each source."""
    amounts = [source.training_tokens * _weight(stage, source) for source in sources]
    capacities = [
        _capacity(stage, source, cursors[source.name]) if amount else 0
        for source, amount in zip(sources, amounts, strict=True)
    ]
    sequences = [0] * len(sources)
    groups = list(_groups(stage, sources))
    _check_groups(stage, groups, sources, capacities)
    for _, members, budget in groups:
        given = _divide_group(stage, sources, members, budget, amounts, capacities)
        for k, n in zip(members, given, strict=True):
            sequences[k] = n
    return sequences


def _groups(stage: StageRecipe, sources: Sequence[Source]) -> Iterable[tuple[str, list[int], int]]:
    """(its name, its sources, its sequences): one for each of `shares`, or all together."""
    total = stage.tokens // stage.sequence_length
    if stage.cells:
        yield from _cells(stage, sources, total)
        return
    if not stage.shares:
        yield "", list(range(len(sources))), total
        return
    ((label, shares),) = stage.shares.items()
    budgets = rounded([share * total for share in shares.values()], total)
    for (value, share), budget in zip(shares.items(), budgets, strict=True):
        members = [k for k, source in enumerate(sources) if source.labels[label] == value]
        yield f".shares.{label}.{value} = {share:g}", members, budget


def _cells(
    stage: StageRecipe, sources: Sequence[Source], total: int
) -> Iterable[tuple[str, list[int], int]]:
    """A group for each of `cells`; ConfigError where two of them have a source in common."""
    owners: dict[int, int] = {}
    budgets = rounded([cell.share * total for cell in stage.cells], total)
    for number, (cell, budget) in enumerate(zip(stage.cells, budgets, strict=True)):
        members = [k for k, source in enumerate(sources) if cell.has(source.labels)]
        for k in members:
            if (other := owners.setdefault(k, number)) != number:
                raise ConfigError(
                    f"stages.{stage.name}.cells[{other}] and [{number}] both have "
                    f"{sources[k].name}; name labels that keep them apart"
                )
        yield f".cells[{number}] = {cell.share:g} of {_named(cell)}", members, budget


def _named(cell: CellShare) -> str:
    return ", ".join(f"{name} {' or '.join(v)}" for name, v in cell.labels.items()) or "all"


def _divide_group(
    stage: StageRecipe,
    sources: Sequence[Source],
    members: Sequence[int],
    budget: int,
    amounts: Sequence[float],
    capacities: Sequence[int],
) -> list[int]:
    """Sequences of each member, which add up to `budget`: first by language, then by amount."""
    by_language: dict[str, list[int]] = defaultdict(list)
    for k in members:
        by_language[sources[k].labels["language"]].append(k)
    languages = list(by_language)
    tokens = [sum(amounts[k] for k in by_language[language]) for language in languages]
    limits = [float(sum(capacities[k] for k in by_language[name])) for name in languages]
    given: dict[int, float] = {}
    budgets = fill(budget, _preferences(stage, languages, tokens), limits) if budget else []
    for language, part in zip(languages, budgets, strict=False):
        own = by_language[language]
        parts = fill(part, [amounts[k] for k in own], [float(capacities[k]) for k in own])
        given |= dict(zip(own, parts, strict=True))
    return rounded([given.get(k, 0.0) for k in members], budget)


def _preferences(
    stage: StageRecipe, languages: Sequence[str], tokens: Sequence[float]
) -> list[float]:
    """Each language's preferred share. Texts without one keep the share that is theirs by size."""
    factor = [stage.weights.get("language", {}).get(language, 1.0) for language in languages]
    whole, spoken = sum(tokens), [k for k, name in enumerate(languages) if name not in NO_LANGUAGE]
    preferences = [n / whole for n in tokens]
    if spoken and any(tokens[k] for k in spoken):
        natural = [tokens[k] / factor[k] if factor[k] else 0.0 for k in spoken]
        sampled = language_preferences(stage.languages, stage.temperature, natural)
        sampled = [p * factor[k] for p, k in zip(sampled, spoken, strict=True)]
        share = sum(preferences[k] for k in spoken) / sum(sampled)
        for p, k in zip(sampled, spoken, strict=True):
            preferences[k] = p * share
    return preferences


def _weight(stage: StageRecipe, source: Source) -> float:
    """The product of the weights of a source's labels; 0 where shares or cells do not name it."""
    if stage.cells and not any(cell.has(source.labels) for cell in stage.cells):
        return 0.0
    for label, shares in stage.shares.items():
        if source.labels[label] not in shares:
            return 0.0
    return math.prod(
        values.get(source.labels[label], 1.0) for label, values in stage.weights.items()
    )


def _capacity(stage: StageRecipe, source: Source, cursor: int) -> int:
    """Sequences that can be read until the source was read max_epochs times in all."""
    left = math.floor(stage.max_epochs * source.training_tokens) - cursor
    return max(0, left // stage.sequence_length)


def _check_groups(
    stage: StageRecipe,
    groups: Sequence[tuple[str, list[int], int]],
    sources: Sequence[Source],
    capacities: Sequence[int],
) -> None:
    """ConfigError where groups have fewer sequences left than they should give: all of them."""
    length, lines, scale, epochs = stage.sequence_length, [], 1.0, 0.0
    for name, members, budget in groups:
        have = sum(capacities[k] for k in members)
        if have >= budget:
            continue
        taken = [sources[k] for k in members if _weight(stage, sources[k])]
        tokens = sum(source.training_tokens for source in taken)
        where = f"stages.{stage.name}{name} wants {budget * length:,} tokens"
        if not tokens:
            raise ConfigError(f"{where}, but no shard with a weight above 0 has any for it")
        gone = math.floor(stage.max_epochs * tokens) - have * length
        lines.append(
            f"{where}, but {have * length:,} are left for it: {counted(len(taken), 'source')} of "
            f"{tokens:,} tokens, times max_epochs = {stage.max_epochs:g}, less {gone:,} that "
            "stages before read or that fill no sequence"
        )
        scale = min(scale, have / budget)
        epochs = max(epochs, stage.max_epochs + (budget - have) * length / tokens)
    if not lines:
        return
    ways = [f"max_epochs = {math.ceil(epochs * 100) / 100:g} or more"]
    most = math.floor(scale * (stage.tokens // length)) * length
    ways = [f"tokens = at most {most:,}", *ways] if most else ways
    ways += ["a smaller share"] if stage.shares or stage.cells else []
    raise ConfigError(f"{'; '.join(lines)}; way out: {', '.join(ways)}, or more text")


def _check_values(inventory: Inventory, recipe: Recipe) -> None:
    """ConfigError for a label's value that no shard has, unless it is a known one with a weight."""
    present: dict[str, set[str]] = {label: set() for label in Labels._fields}
    for columns in inventory.columns():
        for label, found in present.items():
            found.update(columns.words[label][0])
    for stage in recipe.stages:
        for kind, label, values in _labelled(stage):
            known = present[label] | set(_KNOWN.get(label, ()) if kind == "weights" else ())
            missing = [value for value in values if value not in known]
            if missing:
                order = LENGTHS.index if label == "length" else None
                names = sorted(present[label], key=order)
                listed = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
                guess = did_you_mean(missing[0], known)
                way_out = _way_out(stage.name, kind, label, names[0])
                raise ConfigError(
                    f"stages.{stage.name}.{kind}.{label}.{', '.join(missing)}: no shard of "
                    f"{inventory.folder} has this {label}{guess}; there are: {listed}; "
                    f"way out: {way_out}"
                )


def _labelled(stage: StageRecipe) -> Iterable[tuple[str, str, Iterable[str]]]:
    """(table, label, values) of all that a stage names."""
    for kind, table in (("weights", stage.weights), ("shares", stage.shares)):
        yield from ((kind, label, values) for label, values in table.items())
    for number, cell in enumerate(stage.cells):
        for label, values in cell.labels.items():
            yield f"cells[{number}]", label, values


def _way_out(stage: str, kind: str, label: str, present: str) -> str:
    """The replacement of a table that names a value of `label` which no shard has."""
    if kind.startswith("cells"):
        return "a value that there is, or a recipe made for these shards"
    values = f'"{present}" = 1.0' if kind == "shares" else ""
    return f"'{stage}.{kind}.{label}={{{values}}}', say, or a recipe of your own (--recipe)"
