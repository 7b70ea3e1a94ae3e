"""Writes a batch of rollouts as a page to read: dialogs, thinking folded, and reasons for rewards.

    write(samples, "runs/rl, batch 7", Path("report/batch_7.html"))
    section("Best answers", samples)                    # for another page

`samples` are those of `posttrain/watching/samples.py`. Text that the model did not sample is
marked.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from megatron_qwen3.pages import page
from megatron_qwen3.posttrain.rollouts.rollout import ABORT, ERROR, LENGTH
from megatron_qwen3.posttrain.watching.samples import KeptAnswer
from megatron_qwen3.shown import shown

_ENDINGS = {
    LENGTH: "truncated: it reached its limit before it was done",
    ABORT: "given up by its sampler",
    ERROR: "failed",
}
_LONGEST_NAME = 120
MARKS = (
    "Marked in yellow: text that a thinking budget put into the answer. Marked in green: a tool's "
    "answer. Neither is trained."
)


def write(samples: Sequence[KeptAnswer], subtitle: str, out: Path) -> None:
    """A page of the answers, grouped by their tasks; it needs no other file."""
    by_task: dict[tuple[str, str, str], list[KeptAnswer]] = {}
    for sample in samples:
        by_task.setdefault((sample.source, sample.task, sample.mode), []).append(sample)
    body = [page.numbers(_tiles(samples)), page.text("How to read them", [MARKS])]
    body += [
        section(f"{source}: {task}, {mode}", own) for (source, task, mode), own in by_task.items()
    ]
    page.write(out, "Sampled answers", subtitle, body, [])


def _tiles(samples: Sequence[KeptAnswer]) -> list[tuple[str, str]]:
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    truncated = sum(sample.finish == LENGTH for sample in samples)
    return [
        (f"{len(samples):,}", "answers kept for reading"),
        (f"{sum(rewards) / len(rewards):.3f}" if rewards else "", "mean reward of them"),
        (f"{truncated:,}" if truncated else "", "of them truncated"),
    ]


def section(title: str, samples: Iterable[KeptAnswer], is_open: bool = False) -> Markup:
    """Answers to read as a part of a page."""
    return page.answers(title, [_answer(sample) for sample in samples], is_open)


def _answer(sample: KeptAnswer) -> page.ShownAnswer:
    ending = _ENDINGS.get(sample.finish, "")
    if ending and sample.error:
        ending = f"{ending}: {sample.error}"
    return page.ShownAnswer(
        shown(f"{sample.source}: {sample.task}")[:_LONGEST_NAME],
        _badges(sample),
        [(str(m.get("role", "?")), _said(m)) for m in sample.messages],
        sample.blocks,
        ending,
        _parts(sample),
    )


def _badges(sample: KeptAnswer) -> list[str]:
    badges = [
        "not scored" if sample.reward is None else f"reward {sample.reward:.3f}",
        f"advantage {sample.advantage:+.3f}",
        sample.mode,
        f"{sample.tokens:,} tokens",
        f"batch {sample.batch}",
    ]
    if sample.finish in _ENDINGS:
        badges.append("truncated" if sample.finish == LENGTH else sample.finish)
    return badges if sample.is_trained else [*badges, "not trained"]


def _said(message: Mapping[str, Any]) -> str:
    """The text of a message, with its thinking and the tools that it calls."""
    said = [str(message.get(key) or "") for key in ("reasoning_content", "content")]
    if calls := message.get("tool_calls"):
        said.append(json.dumps(calls, ensure_ascii=False))
    return "\n\n".join(part for part in said if part)


def _parts(sample: KeptAnswer) -> list[tuple[str, str, str]]:
    rows = [
        (name, "none" if score is None else f"{score:.3f}", sample.reasons.get(name, ""))
        for name, score in sample.parts.items()
        if score is not None or name in sample.reasons
    ]
    rest = [(n, "", reason) for n, reason in sample.reasons.items() if n not in sample.parts]
    return rows + rest
