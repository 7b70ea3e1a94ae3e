"""Verifies answers by a rule that a JSON object names.

    with Verifiers(workers=4, seconds=30) as verifiers:
        verdicts = verifiers.judge([({"kind": "math", "gold": "42"}, "So it is \\boxed{42}.")])
    verdicts[0].score   # 1.0 right, 0.0 wrong, None if unknown: an error or a time-out
    verifiers.alarm()   # a line where more than 1 % of the verdicts are None, else ""

The rule is a *spec*: its `kind`, one of KINDS, and that kind's fields. `check_spec` refuses a spec
that could judge no answer. Thinking is removed before an answer is judged, and an answer that never
left thinking is wrong, whatever it contains.

Answers are judged in worker processes, which are killed after a limit of seconds: math-verify and
regular expressions hang on some texts, and no signal interrupts C code. `judge` may be called from
any thread. A verifier that fails or hangs gives a verdict without a score, with its reason, which
is counted; never a silent 0. Nothing here imports torch.
"""

from megatron_qwen3.posttrain.verifiers.kinds import KINDS, Verdict, check_spec, verdict
from megatron_qwen3.posttrain.verifiers.pool import Verifiers

__all__ = ["KINDS", "Verdict", "Verifiers", "check_spec", "verdict"]
