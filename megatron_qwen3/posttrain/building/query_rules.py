"""Which queries are fit for verified thinking, by rules: one function each, with its numbers.

several_questions("What is 1+1? And 2+2?")        # {"questions": 2, "parts": 0}
reference_fault({"kind": "math", "gold": ")("})   # "cannot be judged: …", or ""
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.building.checking import Spec
from megatron_qwen3.posttrain.verifiers import check_spec
from megatron_qwen3.posttrain.verifiers.judging import Judges

_NO_ANSWER = "It is \\boxed{-987654321.125}."

# Code, formulas, quoted speech: question marks in them ask nobody.
_NO_TEXT = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\"[^\"\n]{0,400}\"|“[^”]{0,400}”|«[^»]{0,400}»",
    re.DOTALL,
)
_QUESTION = re.compile(r"[？؟]+|\?+(?![A-Za-z0-9=&/])")  # no part of an address
_PART = re.compile(r"(?:^|(?<=[\s:;.]))\(?(?:[a-h]|i{1,3}|iv|v|\d{1,2})[).](?=\s)", re.MULTILINE)
_ASKS = re.compile(
    r"\s*(?:\W*)(?:what|how|why|which|who|when|where|find|compute|calculate|determine|evaluate|"
    r"prove|show|solve|state|list|explain|describe|give|name|write|estimate|is|are|does|do|can|if)\b",
    re.IGNORECASE,
)


def several_questions(text: str) -> dict[str, float]:
    """questions: sentences that ask; parts: numbered or lettered parts of which each asks."""
    plain = _NO_TEXT.sub(" x ", text)
    questions = len(_QUESTION.findall(plain))
    parts = list(_PART.finditer(plain))
    ends = [*(part.start() for part in parts[1:]), len(plain)]
    asking = sum(
        1
        for part, end in zip(parts, ends, strict=False)
        if _ASKS.match(plain, part.end()) or "?" in plain[part.end() : end]
    )
    return {"questions": questions, "parts": asking}


def is_several(numbers: Mapping[str, float]) -> bool:
    return numbers["questions"] > 1 or numbers["parts"] > 1


def reference_faults(specs: Sequence[Spec | None], verifiers: Judges) -> list[str]:
    """Of each verifier why no answer can be judged by it; "" where some can.

    An answer that is none is judged by it: where the reference cannot be parsed, that has no score.
    """
    faults = list(map(_spec_fault, specs))
    sound = [k for k, fault in enumerate(faults) if not fault]
    verdicts = verifiers.judge([(specs[k], _NO_ANSWER) for k in sound])
    for k, verdict in zip(sound, verdicts, strict=True):
        if verdict.score is None:
            faults[k] = verdict.reason
    return faults


def _spec_fault(spec: Spec | None) -> str:
    if spec is None:
        return "there is no verifier"
    try:
        check_spec(spec)
    except ConfigError as error:
        return str(error)
    return ""
