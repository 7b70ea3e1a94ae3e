"""Adds up the tokens of a curriculum's stages by label, for its tables and pictures.

for row in summary(stage, "language"):
    row.value, row.tokens, row.share, row.epochs, row.note
"""

from collections import defaultdict
from dataclasses import dataclass

from data_prep.curriculum import Curriculum, Stage, StageShare
from data_prep.labels import LENGTHS

NO_LABEL = "–"
FILLER = "filler"


@dataclass(frozen=True)
class SummaryRow:
    """The sources of one stage with one value of a label.

    available: their training tokens; tokens, share: those that the stage reads, and their part of
    the stage; natural: their part of all text; epochs: how often the stage reads them on average;
    most: how often the most read of them was read at its end, stages before included; used_up: how
    many of them have nothing left.
    """

    value: str
    sources: int
    available: int
    tokens: int
    share: float
    natural: float
    epochs: float
    most: float
    used_up: int

    @property
    def note(self) -> str:
        """A note for people, in a few words."""
        if not self.tokens:
            return "not read"
        notes = [f"up to {self.most:.1f} epochs"] if self.most > 1.005 else []
        if self.used_up == self.sources:
            notes.append("used up")
        elif self.used_up:
            notes.append(f"{self.used_up} of {self.sources} used up")
        return ", ".join(notes)


def labels_of(curriculum: Curriculum) -> list[str]:
    """The labels that keep its sources apart."""
    shares = curriculum.stages[0].shares
    return list(shares[0].source.labels)


def summary(stage: Stage, label: str) -> list[SummaryRow]:
    """A row for each value of a label, the most read first."""
    groups: dict[str, list[StageShare]] = defaultdict(list)
    for share in stage.shares:
        groups[share.source.labels.get(label, NO_LABEL)].append(share)
    whole = sum(share.source.training_tokens for share in stage.shares)
    rows = [_row(value, group, stage, whole) for value, group in groups.items()]
    return sorted(rows, key=lambda row: (-row.tokens, -row.available))


def texts(stage: Stage) -> list[SummaryRow]:
    """Of text in rows, a row for each length that texts have in theirs, and one for filler.

    A row counts to the length of its longest text where shares and weights are concerned, and holds
    shorter ones beside it. Tokens are as many as all rows of a source have on average. [] where
    nothing is packed.
    """
    amounts: dict[str, list[tuple[StageShare, int]]] = defaultdict(list)
    for share in stage.shares:
        if packed := share.source.packed:
            for value, tokens in {**packed.texts, FILLER: packed.filler}.items():
                amounts[value].append((share, tokens))
    whole = sum(share.source.tokens for share in stage.shares)
    order = [value for value in (*reversed(LENGTHS), FILLER) if value in amounts]
    return [_texts_row(value, amounts[value], stage, whole) for value in order]


def total(stage: Stage) -> SummaryRow:
    """All sources of a stage together."""
    whole = sum(share.source.training_tokens for share in stage.shares)
    return _row("all", list(stage.shares), stage, whole)


def folded(rows: list[SummaryRow], most: int) -> list[SummaryRow]:
    """The first rows, and the rest as one."""
    if len(rows) <= most + 1:
        return rows
    rest = rows[most:]
    available, tokens = sum(row.available for row in rest), sum(row.tokens for row in rest)
    return [
        *rows[:most],
        SummaryRow(
            f"{len(rest)} others",
            sum(row.sources for row in rest),
            available,
            tokens,
            sum(row.share for row in rest),
            sum(row.natural for row in rest),
            tokens / available,
            max(row.most for row in rest),
            sum(row.used_up for row in rest),
        ),
    ]


def _row(value: str, shares: list[StageShare], stage: Stage, whole: int) -> SummaryRow:
    available = sum(share.source.training_tokens for share in shares)
    return _row_of(value, shares, available, sum(share.tokens for share in shares), stage, whole)


def _texts_row(
    value: str, parts: list[tuple[StageShare, int]], stage: Stage, whole: int
) -> SummaryRow:
    available = sum(tokens for _, tokens in parts)
    read = round(sum(s.tokens * tokens / s.source.tokens for s, tokens in parts))
    return _row_of(value, [s for s, tokens in parts if tokens], available, read, stage, whole)


def _row_of(
    value: str, shares: list[StageShare], available: int, tokens: int, stage: Stage, whole: int
) -> SummaryRow:
    """whole: tokens that there are of all values."""
    return SummaryRow(
        value=value,
        sources=len(shares),
        available=available,
        tokens=tokens,
        share=tokens / stage.tokens,
        natural=available / whole,
        epochs=tokens / available if available else 0.0,
        most=max((share.epochs_after for share in shares), default=0.0),
        used_up=sum(_is_used_up(share, stage) for share in shares),
    )


def _is_used_up(share: StageShare, stage: Stage) -> bool:
    """Whether the stage read of it and not one sequence more is allowed."""
    left = stage.max_epochs * share.source.training_tokens - share.cursor - share.tokens
    return share.tokens > 0 and left < stage.sequence_length
