"""Claims of long texts, mixtures and scaling laws, from the results of commands of their own."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scipy.stats import ttest_1samp

from examples.reproduce.claims.claim import Found, Measured, Seeds, mean, read
from examples.reproduce.claims.sparse import loss
from megatron_qwen3.pages import pictures

_AS_TRAINED = 1.05  # times the loss at the trained length that still counts as reading


def reading(seeds: Seeds) -> Found:
    """g: four times the trained length."""
    found = {s: read(f / "long/reading/results.json")["rows"] for s, f in seeds.items()}
    ways = list(dict.fromkeys(row["way"] for row in next(iter(found.values()))))
    longest = max(row["length"] for row in next(iter(found.values())))
    trained = min(row["length"] for row in next(iter(found.values())))

    def number(seed: int, way: str, length: int, name: str) -> float:
        value: float = next(
            row[name] for row in found[seed] if (row["way"], row["length"]) == (way, length)
        )
        return value

    growth = {
        way: {
            s: number(s, way, longest, "last_quarter") / number(s, way, trained, "last_quarter")
            for s in seeds
        }
        for way in ways
    }
    keys = {way: {s: number(s, way, longest, "keys") for s in seeds} for way in ways}
    numbers = [
        *(
            Measured(f"loss at the end of {longest:,} over {trained:,}, {w}", growth[w])
            for w in ways
        ),
        *(Measured(f"pass keys found in {longest:,}, {w}", keys[w], percent=True) for w in ways),
    ]
    both, plain = mean(growth["both"].values()), mean(growth["plain"].values())
    return Found(
        f"With both the loss at the end of {longest:,} positions is {both:.2f} times that at the "
        f"trained {trained:,}, with neither {plain:.2f} times; of pass keys there "
        f"{100 * mean(keys['both'].values()):.0f} % and {100 * mean(keys['plain'].values()):.0f} % "
        "are found.",
        both <= _AS_TRAINED and both < plain,
        numbers,
        [_lengths(found)],
    )


def _lengths(found: Mapping[int, list[dict[str, Any]]]) -> pictures.Picture:
    """Loss at the end of a text by its length, of each way to read; means over seeds."""
    axes = pictures.axes("tokens of the text", "loss of its last quarter, nats per token")
    rows = next(iter(found.values()))
    lengths = sorted({row["length"] for row in rows})
    ways = dict.fromkeys(row["way"] for row in rows)
    for width, (hue, way) in enumerate(zip(pictures.HUES, ways, strict=False)):
        losses = [
            mean(
                row["last_quarter"]
                for of_seed in found.values()
                for row in of_seed
                if (row["way"], row["length"]) == (way, length)
            )
            for length in lengths
        ]
        # Those beneath are wider: three of the four may lie on each other.
        axes.plot(lengths, losses, color=hue, linewidth=5 - width, marker="o", label=way)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.legend(frameon=False)
    return pictures.finish(axes, "g", "Beyond the trained length", "means over seeds", False)


def mixtures(seeds: Seeds) -> Found:
    """h: mixtures of instances, by labels, against mixtures of domains."""
    checks = {
        seed: {row["name"]: row for row in read(folder / "mixture/mixture.json")["checks"]}
        for seed, folder in seeds.items()
    }
    names = list(next(iter(checks.values())))
    losses = {
        name: {seed: mean(rows[name]["losses"]) for seed, rows in checks.items()} for name in names
    }
    numbers = [Measured(f"held-out loss, {name}", losses[name]) for name in names]
    others = [name for name in names if name != "by cells"]
    said = ", ".join(f"{mean(losses[name].values()):.3f} {name}" for name in names)
    return Found(
        f"Held-out loss: {said}. The proxies are far too small to rank mixtures of real text.",
        all(_least_ahead(checks.values(), name) > 0 for name in others),
        numbers,
        [_by_mixture(losses)],
    )


def _least_ahead(checks: Iterable[Mapping[str, dict[str, Any]]], name: str) -> float:
    """The low end of the interval (95 %) by which the mixture by cells has a lower loss, over all
    pairs of runs that differ in the mixture alone."""
    pairs = [(rows[name]["losses"], rows["by cells"]["losses"]) for rows in checks]
    ahead = [of - by for ofs, bys in pairs for of, by in zip(ofs, bys, strict=True)]
    if len(ahead) < 2:
        return ahead[0]
    return float(ttest_1samp(ahead, 0.0).confidence_interval(0.95).low)


def _by_mixture(losses: Mapping[str, Mapping[int, float]]) -> pictures.Picture:
    axes = pictures.axes("", "held-out loss, nats per token")
    for place, (hue, by_seed) in enumerate(zip(pictures.HUES, losses.values(), strict=False)):
        axes.scatter([place] * len(by_seed), list(by_seed.values()), color=hue)
    axes.set_xticks(range(len(losses)), list(losses))
    axes.margins(x=0.2)
    caption = "a point a seed, each the mean of several runs"
    return pictures.finish(axes, "h", "Mixtures", caption, is_wide=False)


def laws(seeds: Seeds) -> Found:
    """i: the rate of a size that was left out."""
    tuned = {seed: _swept(folder / "by_laws")[0] for seed, folder in seeds.items()}
    swept = _swept(next(iter(seeds.values())) / "left_out")
    best = {seed: min(_swept(folder / "left_out")) for seed, folder in seeds.items()}
    worst = {seed: max(_swept(folder / "left_out")) for seed, folder in seeds.items()}
    above = {seed: tuned[seed] / best[seed] - 1 for seed in seeds}
    numbers = [
        Measured("loss by the law's rate", tuned),
        Measured("best loss of the sweep", best),
        Measured("worst loss of the sweep", worst),
        Measured("above the best", above, percent=True),
    ]
    off = numbers[3].mean
    return Found(
        f"{100 * abs(off):.1f} % {'above' if off > 0 else 'below'} the best of the {len(swept)} "
        "runs at that size.",
        all(value <= 0.01 for value in above.values()),
        numbers,
        [_sweep(seeds, tuned)],
    )


def _swept(folder: Path) -> list[float]:
    runs = sorted(path.parent for path in folder.glob("*/*/metrics.jsonl"))
    if not runs:
        raise FileNotFoundError(f"{folder}: no run")
    return [loss(run) for run in runs]


def _sweep(seeds: Seeds, tuned: dict[int, float]) -> pictures.Picture:
    axes = pictures.axes("seed", "held-out loss")
    for hue, (seed, folder) in zip(pictures.HUES, seeds.items(), strict=False):
        swept = _swept(folder / "left_out")
        axes.scatter([seed] * len(swept), swept, color=hue, alpha=0.5)
        axes.scatter([seed], [tuned[seed]], color=hue, marker="*", s=120)
    axes.set_xticks(list(seeds))
    caption = "stars: by the law of smaller sizes; points: the sweep of this size"
    return pictures.finish(axes, "i", "Laws against a sweep", caption, is_wide=False)
