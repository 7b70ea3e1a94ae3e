"""Rules for queries fit for verified thinking: one function each, with its numbers.

several_questions("What is 1+1? And 2+2?")        # {"questions": 2, "parts": 0}
reference_fault({"kind": "math", "gold": ")("})   # "cannot be judged: …", or ""
"""

import re
from collections.abc import Mapping, Sequence

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.building.checking import Spec
from megatron_qwen3.posttrain.verifiers import check_spec
from megatron_qwen3.posttrain.verifiers.judging import Judges

_NO_ANSWER = "It is \\boxed{-987654321.125}."

# Code, formulas, quoted speech: question marks in them are no questions to the model.
_NO_TEXT = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\"[^\"\n]{0,400}\"|“[^”]{0,400}”|«[^»]{0,400}»",
    re.DOTALL,
)
_QUESTION = re.compile(r"[？؟]+|\?+(?![A-Za-z0-9=&/])")  # not within an address
_PART = re.compile(r"(?:^|(?<=[\s:;.]))\(?(?:[a-h]|i{1,3}|iv|v|\d{1,2})[).](?=\s)", re.MULTILINE)
_ASKS = re.compile(
    r"\s*(?:\W*)(?:what|how|why|which|who|when|where|find|compute|calculate|determine|evaluate|"
    r"prove|show|solve|state|list|explain|describe|give|name|write|estimate|is|are|does|do|can|if)\b",
    re.IGNORECASE,
)


def several_questions(text: str) -> dict[str, float]:
    """questions: number of sentences that ask; parts: of numbered or lettered parts that ask."""
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
    """For each verifier, why it can judge no answer; "" where it can.

    It is tried on an answer that is wrong: with an unparsable reference even that has no score.
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
