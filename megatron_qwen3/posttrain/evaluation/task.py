"""One task: its messages, and the verifier or references by which answers are judged. No torch.

    Task("t1", messages, {"kind": "math", "gold": "42"}, "math.jsonl")

A task has a verifier, or a reference for a judge: the right answer (gold), or a checklist of
properties of a good answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """One task.

    set       name of the file or generator that it comes from
    verifier  a spec (posttrain/verifiers); empty where only a judge can score
    gold      a right answer as text, for a judge and for reading; "" if unknown
    checklist properties of a good answer, for a judge
    domain, source, language   labels of the task; language: of question and answer
    rewards   weights of parts of its reward, which override those of its source
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    verifier: Mapping[str, Any]
    set: str
    tools: tuple[Mapping[str, Any], ...] = ()
    gold: str = ""
    checklist: tuple[str, ...] = ()
    domain: str = ""
    source: str = ""
    language: str = ""
    rewards: Mapping[str, float] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The conversation as text; with a single message, that message's text."""
        if len(self.messages) == 1:
            return str(self.messages[0].get("content") or "")
        return "\n\n".join(f"{m['role']}: {m.get('content') or ''}" for m in self.messages)
