"""The cells of a corpus: texts whose labels go together, which a mixture gives shares to.

    for cell in cells(inventory, ["domain", "quality"], least=0.01):
        cell.name, cell.labels, cell.tokens       # "web/high", {"domain": ("web",), …}, 12_345

Shards keep every combination of labels apart. Small runs cannot rate little text: so
values of a label that have too little are joined, beginning with the first label. A cell has one
value of each of the first labels, one or some of the next, and any of the rest, as a row of a
recipe can say. A value that no other can be joined with stays small.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from data_prep.inventory import Inventory, totals
from data_prep.mixing.recipe import CellShare
from megatron_qwen3.config import ConfigError

_SHOWN = 3  # values of a cell's name
Sums = Mapping[tuple[str, ...], Counter[str]]


@dataclass(frozen=True)
class LabelCell:
    """labels: the values that its texts may have, of those labels that decide; combinations: how
    many were joined; documents, tokens, bytes: all that there is of it, held-out text too."""

    labels: Mapping[str, tuple[str, ...]]
    combinations: int
    documents: int
    tokens: int
    bytes: int

    @property
    def name(self) -> str:
        return "/".join(_listed(values) for values in self.labels.values()) or "all"

    def row(self, share: float) -> CellShare:
        """Of a recipe."""
        return CellShare(share, **self.labels)

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether text with these labels is of it."""
        return self.row(0.0).has(labels)


def cells(inventory: Inventory, by: Sequence[str], least: float) -> list[LabelCell]:
    """Those with `least` of all tokens, in the order of the labels, and in each group the rest.

    ConfigError where nothing is left to mix.
    """
    sums = {key: row for key, row in totals(inventory, by).items() if row["tokens"]}
    smallest = least * sum(row["tokens"] for row in sums.values())
    found = list(_cells(sums, by, {}, smallest))
    if len(found) < 2:
        raise ConfigError(
            f"by = {', '.join(by)} and min_share = {least:g} leave one cell of "
            f"{inventory.folder}: nothing to mix; name other labels, or a smaller share"
        )
    return found


def _cells(
    sums: Sums, by: Sequence[str], fixed: dict[str, tuple[str, ...]], smallest: float
) -> Iterator[LabelCell]:
    """Of the combinations in `sums`, whose first labels are those of `fixed`."""
    if not by:
        yield _joined(sums, fixed)
        return
    groups: dict[str, dict[tuple[str, ...], Counter[str]]] = defaultdict(dict)
    for (value, *rest), row in sums.items():
        groups[value][tuple(rest)] = row
    small = sorted(value for value, group in groups.items() if _tokens(group) < smallest)
    for value in sorted(set(groups) - set(small)):
        yield from _cells(groups[value], by[1:], {**fixed, by[0]: (value,)}, smallest)
    if small:
        left = {(value, *key): row for value in small for key, row in groups[value].items()}
        yield _joined(left, {**fixed, by[0]: tuple(small)} if len(small) < len(groups) else fixed)


def _joined(sums: Sums, labels: Mapping[str, tuple[str, ...]]) -> LabelCell:
    whole: Counter[str] = sum(sums.values(), Counter())
    counts = (whole["documents"], whole["tokens"], whole["bytes"])
    return LabelCell(dict(labels), len(sums), *counts)


def _tokens(sums: Sums) -> int:
    return sum(row["tokens"] for row in sums.values())


def _listed(values: Sequence[str]) -> str:
    more = f"+{len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return "+".join(values[:_SHOWN]) + more
