"""Formats a study of mixtures, its mixture.json, as tables and sentences."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from megatron_qwen3.studies.mixture.finding import CELLS, NATURAL
from megatron_qwen3.studies.mixture.result import TRUSTED_PARAMETERS
from megatron_qwen3.tables import table
from megatron_qwen3.training.console import count

Rows = list[list[str]]
Content = dict[str, Any]

_WEAK = 0.5  # of the variance of losses that were left out, explained


def terminal(content: Content) -> Iterator[Table]:
    """All tables."""
    for title, rows in tables(content):
        yield table(rows, title)


def tables(content: Content) -> list[tuple[str, Rows]]:
    """With their titles."""
    return [
        ("Shares of cells", cell_rows(content)),
        ("Losses predicted of mixtures left out", fit_rows(content)),
        ("Held-out text", target_rows(content)),
        *([("Mixtures that were run", check_rows(content))] if content["checks"] else []),
    ]


def cell_rows(content: Content) -> Rows:
    """One row per cell; of several stages the share in each."""
    names = [NATURAL, *(n for n in content["cells"][0]["shares"] if n not in (NATURAL, CELLS))]
    stages = content["stages"]
    ends = [CELLS] if len(stages) == 1 else [f"{CELLS}: {stage}" for stage in stages]
    rows = [["cell", "tokens", *names, *ends, "at most"]]
    for cell in content["cells"]:
        shares = [*(cell["shares"][name] for name in names), *cell["stages"], cell["most"]]
        rows.append([cell["name"], count(cell["tokens"]), *map(percent, shares)])
    return rows


def fit_rows(content: Content) -> Rows:
    """One row per form, the chosen first."""
    rows = [["form", "error, nats", "R²", "rank correlation"]]
    for fit in content["fits"]:
        numbers = (f"{fit['error']:.4f}", f"{fit['r2']:.2f}", f"{fit['rank']:.2f}")
        rows.append([fit["form"], *numbers])
    return rows


def target_rows(content: Content) -> Rows:
    """One row per target."""
    rows = [["held-out text", "weight", "R²", "rank correlation"]]
    for target in content["targets"]:
        numbers = (f"{target['r2']:.2f}", f"{target['rank']:.2f}")
        rows.append([target["name"], percent(target["weight"]), *numbers])
    return rows


def check_rows(content: Content) -> Rows:
    """One row per mixture that was run, the lowest loss first."""
    rows = [["mixture", "loss, nats", "expected", "of seeds", "above by cells"]]
    for check in content["checks"]:
        losses = check["losses"]
        expected = content["expected"].get(check["name"])
        rows.append(
            [
                check["name"],
                f"{sum(losses) / len(losses):.4f}",
                "" if expected is None else f"{expected:.4f}",
                " ".join(f"{loss:.4f}" for loss in losses),
                "" if check["name"] == CELLS else _apart(check),
            ]
        )
    return rows


def sentences(content: Content) -> list[str]:
    """The result, and how reliable it is."""
    checks = {check["name"]: check for check in content["checks"]}
    found = [_verdict(check) for name, check in checks.items() if name != CELLS and CELLS in checks]
    fit, proxies = content["fits"][0], content["proxies"]
    explained = f"The {fit['form']} explains {100 * fit['r2']:.0f} % of the variance of losses"
    doubt = (
        ": too little to choose a mixture by; try more, or longer runs" if fit["r2"] < _WEAK else ""
    )
    found.append(f"{explained} of mixtures that it was not fitted to{doubt}.")
    if proxies["parameters"] < TRUSTED_PARAMETERS:
        found.append(
            f"Proxies have {count(proxies['parameters'])} parameters. Below about "
            f"{count(TRUSTED_PARAMETERS)} they rank mixtures otherwise than large models do (arXiv "
            "2602.12237): this shows the way, not the mixture for a large model."
        )
    if len(content["stages"]) > 1:
        found.append(
            "The checked run has the last stage's mixture all along; the schedule of stages is the "
            "lowest loss expected at the end of each (arXiv 2606.18663), and was not run."
        )
    return found


def _verdict(check: Content) -> str:
    seeds = len(check["losses"])
    of = f"{seeds} seeds" if seeds > 1 else "one seed, which says little"
    width = check["plus_minus"]
    if width is not None and abs(check["ahead"]) < width:
        return (
            f"The mixture by cells is not told from {check['name']}: {_apart(check)} nats ({of})."
        )
    side = "lower than" if check["ahead"] > 0 else "HIGHER than"
    return (
        f"The mixture by cells has a held-out loss {side} {check['name']}, by {_apart(check)} nats "
        f"({of})."
    )


def _apart(check: Content) -> str:
    width = check["plus_minus"]
    return f"{check['ahead']:.4f}" + ("" if width is None else f" ± {width:.4f}")


def percent(share: float) -> str:
    """Two digits that say something."""
    return f"{100 * share:.{1 if share >= 0.095 else 2}f} %"
