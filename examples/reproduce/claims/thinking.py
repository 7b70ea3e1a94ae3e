"""Claims of thinking: budgets, reasoning RL from the cold start, and the fusion of both modes."""

from collections.abc import Sequence
from pathlib import Path

from examples.reproduce.claims.claim import (
    Found,
    Measured,
    Seeds,
    accuracy,
    mean,
    measured,
    read,
    rows,
)
from megatron_qwen3.pages import pictures

_NOISE = 0.03  # by which a rate of 400 tasks moves by chance


def budgets(seeds: Seeds) -> Found:
    """a: accuracy by thinking budget."""
    curves: dict[int, list[tuple[int, float]]] = {}
    plain, unlimited = {}, {}
    for seed, folder in seeds.items():
        evaluation = folder / "evaluations" / "budgets"
        found = read(evaluation / "results.json")["conditions"]
        curves[seed] = [
            (row["budget"], row["pass"]["1"]["value"])
            for row in found
            if row["budget"] is not None and row["set"] == "all"
        ]
        plain[seed] = accuracy(evaluation, "non-thinking")
        unlimited[seed] = accuracy(evaluation, "thinking")
    budgets_in_order = [budget for budget, _ in next(iter(curves.values()))]
    curve = [mean(dict(c)[budget] for c in curves.values()) for budget in budgets_in_order]
    rises = all(after > before - _NOISE for before, after in zip(curve, curve[1:], strict=False))
    steps = [after - before for before, after in zip(curve, curve[1:], strict=False)]
    smooth = rises and max(steps) < 0.5 * (curve[-1] - curve[0])
    numbers = [
        measured("without thinking", plain),
        *(
            Measured(
                f"{budget} tokens of thinking",
                {seed: dict(c)[budget] for seed, c in curves.items()},
                percent=True,
            )
            for budget in budgets_in_order
        ),
        measured("thinking without a budget", unlimited),
    ]
    better = numbers[-1].mean > numbers[0].mean + _NOISE
    return Found(
        f"From {curve[0]:.0%} at {budgets_in_order[0]} tokens to {curve[-1]:.0%} at "
        f"{budgets_in_order[-1]}, {'without' if rises else 'with'} a fall on the way, in steps of "
        f"{max(steps):.0%} at most; {numbers[0].said()[0]} at once.",
        smooth and better,
        numbers,
        [_curves(curves)],
    )


def reasoning(seeds: Seeds) -> Found:
    """b: RL from the cold start, in one run."""
    before = {s: accuracy(f / "evaluations/cold_start", "thinking") for s, f in seeds.items()}
    after = {s: accuracy(f / "evaluations/reasoning", "thinking") for s, f in seeds.items()}
    entropy = {seed: _entropy(f / "teacher/post_2_reasoning_rl") for seed, f in seeds.items()}
    first = {seed: mean(values[: max(1, len(values) // 10)]) for seed, values in entropy.items()}
    last = {seed: mean(values[-max(1, len(values) // 10) :]) for seed, values in entropy.items()}
    numbers = [
        measured("cold start", before),
        measured("after reasoning RL", after),
        Measured("entropy at the start, nats per token", first),
        Measured("entropy at the end", last),
    ]
    gains = numbers[1].mean - numbers[0].mean
    steady = numbers[3].mean >= numbers[2].mean - 0.01
    return Found(
        f"{numbers[0].said()[0]} before, {numbers[1].said()[0]} after; the entropy goes from "
        f"{numbers[2].mean:.2f} to {numbers[3].mean:.2f} nats per token.",
        gains > _NOISE and steady,
        numbers,
        [_rewards(seeds)],
    )


def _entropy(run: Path) -> list[float]:
    """Of every update, nats per token."""
    if not (found := [row["entropy"] for row in rows(run, "train")]):
        raise FileNotFoundError(f"{run}: an update")
    return found


def fusion(seeds: Seeds) -> Found:
    """c: obedience to flags, and what it costs."""
    numbers = []
    for name, where in (("after fusion", "fusion"), ("after general RL", "general")):
        obeyed = {
            seed: read(folder / f"evaluations/{where}/results.json")["obedience"]["groups"]["all"]
            for seed, folder in seeds.items()
        }
        numbers += [
            measured(f"flags obeyed {name}", {s: one["obeys"] for s, one in obeyed.items()}),
            measured(
                f"thinking accuracy {name}",
                {s: accuracy(f / f"evaluations/{where}", "thinking") for s, f in seeds.items()},
            ),
        ]
    before = measured(
        "thinking accuracy before",
        {s: accuracy(f / "evaluations/reasoning", "thinking") for s, f in seeds.items()},
    )
    obeyed_at_end, lost = numbers[2].mean, before.mean - numbers[3].mean
    return Found(
        f"{100 * obeyed_at_end:.1f} % obeyed at the end; thinking loses {100 * lost:.1f} points "
        "from before the fusion.",
        obeyed_at_end >= 0.989 and lost <= 0.02,
        [before, *numbers],
        [_stages((before, *numbers[1::2]), numbers[::2])],
    )


def _stages(right: Sequence[Measured], obeyed: Sequence[Measured]) -> pictures.Picture:
    """By stage: before the fusion, after it, after general RL."""
    axes = pictures.axes("", "%")
    lines = (("right with thinking", right, 0), ("flags obeyed", obeyed, 1))
    for hue, (name, numbers, first) in zip(pictures.HUES, lines, strict=False):
        for order, seed in enumerate(right[0].by_seed):
            values = [100 * number.by_seed[seed] for number in numbers]
            at, label = range(first, first + len(values)), name if order == 0 else None
            axes.plot(at, values, color=hue, marker="o", label=label)
    axes.set_xticks(range(3), ["reasoning RL", "fusion", "general RL"])
    axes.legend(frameon=False)
    return pictures.finish(axes, "c", "Both modes by stage", "a line a seed", is_wide=False)


def _curves(curves: dict[int, list[tuple[int, float]]]) -> pictures.Picture:
    axes = pictures.axes("tokens of thinking, at most", "right, %")
    for hue, (seed, curve) in zip(pictures.HUES, curves.items(), strict=False):
        budgets_of, values = zip(*curve, strict=True)
        axes.plot(
            budgets_of, [100 * v for v in values], color=hue, marker="o", label=f"seed {seed}"
        )
    axes.set_ylim(0, 100)
    axes.legend(frameon=False)
    return pictures.finish(axes, "a", "Thinking budgets", "by seed", is_wide=False)


def _rewards(seeds: Seeds) -> pictures.Picture:
    axes = pictures.axes("batch of rollouts", "right, %")
    for hue, (seed, folder) in zip(pictures.HUES, seeds.items(), strict=False):
        found = rows(folder / "teacher/post_2_reasoning_rl", "rollouts")
        axes.plot([100 * row["pass_rate"] for row in found], color=hue, label=f"seed {seed}")
    axes.legend(frameon=False)
    return pictures.finish(axes, "b", "Reasoning RL", "what was sampled", is_wide=False)
