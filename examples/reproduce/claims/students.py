"""Claim d: on-policy distillation against reinforcement learning of one student.

Compute is that of all passes over tokens (`spent.py`). What the teacher's own training took is left
out, as the report leaves it out.
"""

import math
from pathlib import Path

from examples.reproduce.claims.claim import (
    Found,
    Measured,
    Seeds,
    accuracy,
    measured,
    model_of,
    rows,
)
from examples.reproduce.claims.spent import of_batch
from megatron_qwen3.pages import pictures

Curve = list[tuple[float, float]]  # FLOPs spent, share right of held-out problems
ON_POLICY, RL = "distill_2_on_policy", "student_rl"
_NOISE = 0.05  # by which pass@64 of 60 problems moves by chance


def distillation(seeds: Seeds) -> Found:
    """d: accuracy by compute, and pass@64."""
    curves = {
        seed: {run: curve(folder, run) for run in (ON_POLICY, RL)} for seed, folder in seeds.items()
    }
    passes = {
        run: {s: accuracy(f / f"evaluations/{run}_64", "thinking", 64) for s, f in seeds.items()}
        for run in ("distill_1_off_policy", ON_POLICY, RL)
    }
    ends = {
        name: {s: accuracy(f / f"evaluations/{name}", "thinking") for s, f in seeds.items()}
        for name in ("off_policy", "on_policy", "student_rl")
    }
    ratio = {seed: ratio_of(c[ON_POLICY], c[RL]) for seed, c in curves.items()}
    numbers = [
        measured("start, after off-policy distillation", ends["off_policy"]),
        measured("after on-policy distillation", ends["on_policy"]),
        measured("after RL", ends["student_rl"]),
        Measured("compute of distillation to where RL ends, share of RL's", ratio, percent=True),
        measured("pass@64 of the longest at the start", passes["distill_1_off_policy"]),
        measured("pass@64 after on-policy distillation", passes[ON_POLICY]),
        measured("pass@64 after RL", passes[RL]),
    ]
    start, distilled, reinforced, share, *at_64 = (number.mean for number in numbers)
    wins = distilled > reinforced and share <= 0.1
    explores = at_64[1] > at_64[0] + _NOISE and at_64[2] <= at_64[0] + _NOISE
    return Found(
        f"From {start:.0%} distillation comes to {distilled:.0%}, RL to {reinforced:.0%}, which "
        f"{_taken(share)}. pass@64 of the longest problems "
        f"goes from {at_64[0]:.0%} to {at_64[1]:.0%} with distillation, to {at_64[2]:.0%} with RL.",
        wins and explores,
        numbers,
        [_curves(curves)],
    )


def _taken(share: float) -> str:
    if math.isfinite(share):
        return f"distillation reaches with {share:.0%} of RL's compute"
    return "distillation does not reach with every seed"


def curve(folder: Path, run: str) -> Curve:
    """Held-out accuracy by compute, from the evaluations on the way."""
    student = model_of(folder / "student" / run)
    teacher = model_of(folder / "teacher/post_2_reasoning_rl")
    spent, points = 0.0, []
    of_step = {row["step"]: row for row in rows(folder / "student" / run, "rollouts")}
    evaluated = {row["step"]: row for row in rows(folder / "student" / run, "eval")}
    for step in sorted({*of_step, *evaluated}):
        if row := of_step.get(step):
            spent += of_batch(row, student, teacher if run == ON_POLICY else None)
        if (row := evaluated.get(step)) and row.get("pass_rate") is not None:
            points.append((spent, row["pass_rate"]))
    return points


def ratio_of(distilled: Curve, reinforced: Curve) -> float:
    """Compute with which distillation first is as good as RL at its end, over all that RL spent;
    both as they are evaluated on the way."""
    spent, at_end = reinforced[-1] if reinforced else (0.0, 1.0)
    reached = [flops for flops, accuracy in distilled if accuracy >= at_end]
    return min(reached) / spent if reached and spent else float("inf")


def _curves(curves: dict[int, dict[str, Curve]]) -> pictures.Picture:
    axes = pictures.axes("GFLOP", "right, % of held-out problems")
    names = {ON_POLICY: "on-policy distillation", RL: "RL"}
    for hue, run in zip(pictures.HUES, (ON_POLICY, RL), strict=False):
        for number, of_seed in enumerate(curves.values()):
            flops, values = zip(*of_seed[run], strict=True)
            label = names[run] if number == 0 else None
            axes.plot([f / 1e9 for f in flops], [100 * v for v in values], color=hue, label=label)
    axes.legend(frameon=False)
    return pictures.finish(axes, "d", "A student's accuracy by compute", "by seed", is_wide=False)
