"""One task: what is asked, and how an answer to it is judged. No torch.

    Task("t1", messages, {"kind": "math", "gold": "42"}, "math.jsonl")

A task has a verifier, or what a judge needs: the right answer (gold), or a checklist of what a good
one does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """One task.

    set       the file or generator that it comes from
    verifier  a spec (posttrain/verifiers); empty where a judge alone can say
    gold      a right answer as text, for a judge and for reading; "" where there is none
    checklist what a good answer does, for a judge
    domain, source, language   of what it is; the language is that of the question and the answer
    rewards   weights of parts of its reward, in place of those of its source
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
        """What is asked: the conversation as text; the last message, where that is all."""
        if len(self.messages) == 1:
            return str(self.messages[0].get("content") or "")
        return "\n\n".join(f"{m['role']}: {m.get('content') or ''}" for m in self.messages)
