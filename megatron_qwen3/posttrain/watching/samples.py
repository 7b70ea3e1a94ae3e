"""Reads a run's stored sample answers, split into thinking, answer, forced and tools' text.

    samples = read(folder_of(run_dir, 7))              # ConfigError where a line is damaged
    for block in samples[0].blocks: block.kind, block.spans

samples.jsonl of a record (`rollouts/record.py`) has some answers of a batch, one per line, with the
parts of their rewards and the reasons. `pieces` are their text in the order of the tokens: sampled
by the model, or inserted by a thinking budget or a tool. All of it is untrusted text: only `pages`
makes markup. No torch.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from megatron_qwen3.chat import END_THINK, THINK, TOOL_RESPONSE
from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts.forgetting import KEPT_EVERY, KEPT_SAMPLES
from megatron_qwen3.posttrain.rollouts.record import folder_of
from megatron_qwen3.posttrain.rollouts.record_files import SAMPLES_FILE
from megatron_qwen3.posttrain.rollouts.rollout import STOP
from megatron_qwen3.settings import ConfigError
from megatron_qwen3.storage.inside import inside, parse_json

Decode = Callable[[Sequence[int]], str]
THINKING, ANSWER = "thinking", "answer"
FORCED, TOOL = "forced", "tool"  # marks of inserted text
_THOUGHTS = re.compile(rf"{re.escape(THINK)}.*?(?:{re.escape(END_THINK)}|\Z)", re.DOTALL)
SHOWN_GROUPS = 4  # the first groups of a batch, whose best and worst answers are stored
_MOST_LINE_BYTES = 64 << 20


class Block(NamedTuple):
    """A part of an answer: thinking or answer; spans: text with "", "forced" or "tool"."""

    kind: str
    spans: tuple[tuple[str, str], ...]

    @property
    def characters(self) -> int:
        return sum(len(text) for text, _ in self.spans)


@dataclass(frozen=True)
class KeptAnswer:
    """One answer. reward, and the parts' scores: None where there is none; reasons: by part, and
    under other names those that concern the whole answer."""

    batch: int
    task: str
    source: str
    mode: str
    messages: tuple[Mapping[str, Any], ...]
    pieces: tuple[tuple[str, bool], ...]
    finish: str
    error: str
    tokens: int
    reward: float | None
    parts: Mapping[str, float | None]
    reasons: Mapping[str, str]
    advantage: float
    is_trained: bool

    @property
    def blocks(self) -> list[Block]:
        """The answer, thinking apart; a tool's text is no thinking, whatever tags it has."""
        text = "".join(piece for piece, _ in self.pieces)
        marks = list(_marks(self.pieces))
        blocks, end = [], 0
        own = "".join(
            "\0" * (last - first) if mark == TOOL else text[first:last]
            for first, last, mark in marks
        )
        for kind, first, last in _stretches(own):
            blocks.append(Block(kind, tuple(_cut(text, marks, first, last))))
            end = last
        assert end == len(text)
        return blocks


def _stretches(text: str) -> Iterator[tuple[str, int, int]]:
    """(kind, begin, end) of thinking and of the text around it; a block that the prompt opened
    begins with the text."""
    end = 0
    close, first_open = text.find(END_THINK), text.find(THINK)
    if close >= 0 and (first_open < 0 or close < first_open):
        end = close + len(END_THINK)
        yield THINKING, 0, end
    for found in _THOUGHTS.finditer(text, end):
        if found.start() > end:
            yield ANSWER, end, found.start()
        yield THINKING, found.start(), found.end()
        end = found.end()
    if end < len(text):
        yield ANSWER, end, len(text)


def _marks(pieces: Iterable[tuple[str, bool]]) -> Iterator[tuple[int, int, str]]:
    """Begin, end and mark of each piece."""
    end = 0
    for text, is_sampled in pieces:
        mark = "" if is_sampled else TOOL if TOOL_RESPONSE in text else FORCED
        yield end, end + len(text), mark
        end += len(text)


def _cut(
    text: str, marks: Sequence[tuple[int, int, str]], first: int, last: int
) -> Iterator[tuple[str, str]]:
    for begin, end, mark in marks:
        if own := text[max(begin, first) : min(end, last)]:
            yield own, mark


def pieces_of(ids: Sequence[int], sampled: Sequence[bool], decode: Decode) -> list[list[Any]]:
    """[text, whether it was sampled] of each run of tokens that agree in this."""
    pieces: list[list[Any]] = []
    begin = 0
    for k in range(1, len(ids) + 1):
        if k == len(ids) or bool(sampled[k]) != bool(sampled[begin]):
            pieces.append([decode(ids[begin:k]), bool(sampled[begin])])
            begin = k
    return pieces


def read(folder: Path) -> list[KeptAnswer]:
    """The stored answers of a record. ConfigError, in one line, where they cannot be read."""
    batch = int(records.read_about(folder)["batch"])
    samples = []
    if not (folder / SAMPLES_FILE).exists():
        raise ConfigError(
            f"{folder} has no {SAMPLES_FILE}: answers are kept of the newest {KEPT_SAMPLES} "
            f"batches, and of every {KEPT_EVERY}th before them"
        )
    path = inside(folder, SAMPLES_FILE)
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if len(line) > _MOST_LINE_BYTES:
                    raise ValueError(f"line {number} is too long")
                samples.append(of_line(batch, parse_json(line), number))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    return samples


def newest(run_dir: Path, batches: int) -> list[KeptAnswer]:
    """The readable answers of the newest batches of a run."""
    found: list[KeptAnswer] = []
    for batch in records.batches(run_dir)[-batches:]:
        try:
            found += read(folder_of(run_dir, batch))
        except ConfigError:
            continue  # being written, or damaged: use the others
    return found


def of_line(batch: int, line: Any, number: int = 0) -> KeptAnswer:
    """Parse a line of samples.jsonl. ValueError, with its number, where it is malformed."""
    try:
        pieces = line.get("pieces") or [(line["answer"], True)]
        return KeptAnswer(
            batch,
            str(line["task"]),
            str(line["source"]),
            str(line["mode"]),
            tuple(dict(message) for message in line["messages"]),
            tuple((str(text), bool(is_sampled)) for text, is_sampled in pieces),
            str(line.get("finish", STOP)),
            str(line.get("error", "")),
            int(line.get("tokens", 0)),
            _number(line.get("reward")),
            {str(name): _number(score) for name, score in dict(line["parts"]).items()},
            {str(name): str(reason) for name, reason in dict(line["reasons"]).items()},
            _number(line.get("advantage")) or 0.0,
            bool(line.get("is_trained", True)),
        )
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ValueError(f"line {number} is no answer of a batch of rollouts") from None


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
