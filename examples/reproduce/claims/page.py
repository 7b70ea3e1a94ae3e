"""The page of all claims, and the JSON beside it: `write(claims, notes, folder)`."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.reproduce.claims.claim import Claim, Found
from examples.reproduce.claims.spent import flops
from megatron_qwen3.pages import page
from megatron_qwen3.storage.whole import write_whole

_HOLDS = {True: "holds here", False: "does not hold here", None: "not measured"}


def write(
    claims: Sequence[tuple[Claim, Found]],
    notes: Mapping[str, Mapping[str, Any]],
    size: str,
    folder: Path,
) -> None:
    """report.html and report.json. notes: of each part that is done, by its name."""
    minutes = sum(note["seconds"] for note in notes.values()) / 60
    cpu = sum(sum(note["cpu_seconds"]) for note in notes.values()) / 60
    held = sum(found.holds is True for _, found in claims)
    seeds = sorted({seed for _, found in claims for seed in _seeds(found)})
    tiles = [
        (f"{held} of {len(claims)}", "claims hold here"),
        (f"{len(seeds)}", "seed" if len(seeds) == 1 else "seeds"),
        (f"{cpu:,.0f} min", "of processor time"),
    ]
    sections = [page.numbers(tiles), page.table("Claims", _overview(claims)), page.FIGURES]
    for claim, found in claims:
        said = [
            f"The report: {claim.report}",
            f"Here: {found.said}",
            _spent(claim, found, notes, folder),
        ]
        sections.append(page.text(f"{claim.key}. {claim.title}: {_HOLDS[found.holds]}", said))
        if found.numbers:
            sections.append(page.table(f"Numbers of {claim.key}", _numbers(found)))
    sections.append(page.files("Commands of each part", _commands(notes)))
    subtitle = (
        f"size {size}; intervals are over problems (95 %) for one seed, from the lowest to the "
        f"highest for several; parts took {minutes:,.0f} minutes one after another"
    )
    pictures = [picture for _, found in claims for picture in found.pictures]
    title = "The report's claims, reproduced"
    page.write(folder / "report.html", title, subtitle, sections, pictures)
    content = {
        "size": size,
        "seeds": seeds,
        "cpu_minutes": cpu,
        "claims": [_json(one, folder) for one in claims],
    }
    write_whole(folder / "report.json", [json.dumps(content, indent=1).encode()])


def _overview(claims: Sequence[tuple[Claim, Found]]) -> list[list[str]]:
    lines = [["", "claim", "", "what came of it"]]
    return lines + [[c.key, c.title, _HOLDS[found.holds], found.said] for c, found in claims]


def _spent(claim: Claim, found: Found, notes: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """The parts that make the claim's results, and their compute over the seeds that it tells."""
    names = [f"{part}_{seed}" for seed in _seeds(found) for part in claim.parts]
    cpu = sum(sum(notes[name]["cpu_seconds"]) for name in names if name in notes)
    return (
        f"Parts: {', '.join(names) or 'none is done'}; {cpu / 60:.1f} minutes of processor time, "
        f"{_flops(claim, found, folder) / 1e12:,.2f} TFLOP of training and sampling."
    )


def _seeds(found: Found) -> list[int]:
    return sorted({seed for number in found.numbers for seed in number.by_seed})


def _flops(claim: Claim, found: Found, folder: Path) -> float:
    runs = [f"seed_{seed}/{pattern}" for seed in _seeds(found) for pattern in claim.runs]
    return sum(flops(file.parent) for run in runs for file in folder.glob(f"{run}/metrics.jsonl"))


def _numbers(found: Found) -> list[list[str]]:
    return [["number", "", "interval"], *([n.name, *n.said()] for n in found.numbers)]


def _commands(notes: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [
        (
            f"{name}: {note['seconds'] / 60:.1f} minutes, "
            f"{sum(note['cpu_seconds']) / 60:.1f} of processor time",
            "\n".join(" ".join(command) for command in note["commands"]),
        )
        for name, note in notes.items()
    ]


def _json(pair: tuple[Claim, Found], folder: Path) -> dict[str, Any]:
    claim, found = pair
    numbers = [
        {
            "name": number.name,
            "mean": _finite(number.mean),
            "interval": [_finite(end) for end in number.interval or ()],
            "by_seed": {seed: _finite(value) for seed, value in number.by_seed.items()},
        }
        for number in found.numbers
    ]
    texts = {"key": claim.key, "title": claim.title, "report": claim.report, "found": found.said}
    compute = {"parts": claim.parts, "flops": _flops(claim, found, folder)}
    return {**texts, "holds": found.holds, **compute, "numbers": numbers}


def _finite(value: float) -> float | None:
    """None for what was not reached, which JSON has no number for."""
    return value if math.isfinite(value) else None
