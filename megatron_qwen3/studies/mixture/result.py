"""Writes the files of a study of mixtures: mixture.json, a recipe, and the proposed mixtures.

    shares_NP = proposed(corpus, parts)              # the same again wherever a study goes on
    parts = parts_of(corpus)                         # of an older mixture.json, where one is reused
    write(corpus, tried, found, rows, points)

mixture.json holds all numbers of the page; recipe.toml is for `mix`. Legend: N mixtures, P parts,
C cells, K stages.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.json_files import VERSION, read_json, write_json
from data_prep.mixing.plan import plan
from data_prep.mixing.recipe import CellShare, Recipe
from megatron_qwen3.config import ConfigError
from megatron_qwen3.model.flops import parameter_count
from megatron_qwen3.storage.inside import fault_of
from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.studies.local import Point
from megatron_qwen3.studies.mixture.finding import (
    CELLS,
    BestMixtures,
    CheckedMixture,
    TriedMixtures,
)
from megatron_qwen3.studies.mixture.study import MixtureCorpus
from megatron_qwen3.studies.mixture.swarm import Parts, swarm
from megatron_qwen3.toml import emit

Array = NDArray[np.float64]

MIXTURE, RECIPE, PROPOSED = "mixture.json", "recipe.toml", "proposed.json"
TRUSTED_PARAMETERS = 15e6  # below, proxies rank mixtures poorly: arXiv 2602.12237


def parts_of(corpus: MixtureCorpus) -> tuple[Parts, list[str]]:
    """The parts of mixtures, and the names of cells that keep their ratios.

    ConfigError where the older study cannot be read, has other labels, or nothing changed.
    """
    cells = corpus.cells
    if not corpus.study.reuse:
        return Parts.of_cells(len(cells)), []
    path = Path(corpus.study.reuse)
    old = read_json(path, "reuse names the mixture.json of an older study")
    try:
        before = {_key(row["labels"]): row for row in old["cells"]}
        rows = [before.get(_key(cell.labels)) for cell in cells]
        counts = [tuple(row[n] for n in _COUNTS) if row else () for row in rows]
        shares_C = np.array([float(row["share"]) if row else 0.0 for row in rows])
        labels = tuple(old["by"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is no mixture: {fault_of(error)}") from None
    if labels != corpus.by:
        raise ConfigError(f"reuse: {path} has cells by {labels}, this study by {corpus.by}")
    here = [tuple(getattr(cell, name) for name in _COUNTS) for cell in cells]
    is_kept_C = np.array([mine == theirs for mine, theirs in zip(here, counts, strict=True)])
    if is_kept_C.all():
        raise ConfigError(f"reuse: no cell is other than in {path}; its mixture holds")
    kept = [cell.name for cell, is_kept in zip(cells, is_kept_C, strict=True) if is_kept]
    return Parts.kept(shares_C, is_kept_C), kept


_COUNTS = ("documents", "tokens", "bytes")


def proposed(corpus: MixtureCorpus, parts: Parts) -> Array:
    """The mixtures of parts that are tried, [N, P].

    They are noted in the study's folder; ConfigError where others were begun there. More of them
    than before are fine.
    """
    study = corpus.study
    natural_P, most_P = parts.natural(corpus.natural_C), parts.most(corpus.most_C)
    count = corpus.proxies(len(natural_P))
    shares_NP = swarm(natural_P, most_P, count, study.seed, study.temperature)
    file = Path(study.dir) / PROPOSED
    content = {
        "version": VERSION,
        "cells": [cell.name for cell in corpus.cells],
        "tokens": [cell.tokens for cell in corpus.cells],
        "parts": parts.cells_PC.tolist(),
        "proxy": [corpus.proxy_tokens, corpus.proxy.data.sequence_length],
        "of_all": [study.seed, study.max_epochs, study.held_out, study.held_out_tokens],
    }
    shares = np.round(shares_NP, 12).tolist()
    if file.exists():
        before = read_json(file, "delete it, and all runs of the study")
        begun = before.pop("shares", [])
        same = min(len(begun), len(shares))
        if before != content or begun[:same] != shares[:same]:
            what = next((name for name in content if before.get(name) != content[name]), "shares")
            raise ConfigError(
                f"{file}: other mixtures were begun here, {what} differ; give the study another dir"
            )
        shares = max(begun, shares, key=len)
    Path(study.dir).mkdir(parents=True, exist_ok=True)
    write_json(file, content | {"shares": shares})
    return shares_NP


def write(
    corpus: MixtureCorpus,
    tried: TriedMixtures,
    found: BestMixtures,
    rows: Sequence[CheckedMixture],
    points: Sequence[Point],
) -> dict[str, Any]:
    """Write the recipe and mixture.json; returns the content of the latter.

    ConfigError where `mix` would refuse the recipe.
    """
    recipe = corpus.recipe(list(found.stages_KC))
    plan(corpus.inventory, recipe)
    folder = Path(corpus.study.dir)
    write_whole(folder / RECIPE, [recipe_text(recipe, corpus).encode()])
    content = as_dict(corpus, tried, found, rows, points)
    write_json(folder / MIXTURE, content)
    return content


def as_dict(
    corpus: MixtureCorpus,
    tried: TriedMixtures,
    found: BestMixtures,
    rows: Sequence[CheckedMixture],
    points: Sequence[Point],
) -> dict[str, Any]:
    """All numbers of a study."""
    done = [point for point in points if point.is_done]
    fit = found.fits[0]
    return {
        "version": VERSION,
        "by": list(corpus.by),
        "stages": list(corpus.study.stages),
        "cells": list(_cells(corpus, found)),
        "targets": [
            {"name": name, "weight": weight, **asdict(quality)}
            for name, weight, quality in zip(
                tried.targets, tried.weights_T.tolist(), fit.of_targets, strict=True
            )
        ],
        "fits": [
            {"form": f.form, "error": f.error, "r2": f.objective.r2, "rank": f.objective.rank}
            for f in found.fits
        ],
        "proxies": {
            "count": len(tried.shares_NP),
            "parameters": parameter_count(points[0].config.model),
            "tokens": corpus.proxy_tokens,
            "flops": sum(point.work for point in done),
        },
        "measured": tried.objective_N.tolist(),
        "predicted": fit.predicted_N.tolist(),
        "expected": found.predicted,
        "checks": [asdict(row) for row in rows],
    }


def _cells(corpus: MixtureCorpus, found: BestMixtures) -> Iterator[dict[str, Any]]:
    for c, cell in enumerate(corpus.cells):
        yield {
            "name": cell.name,
            "labels": {name: list(values) for name, values in cell.labels.items()},
            "combinations": cell.combinations,
            **{name: getattr(cell, name) for name in _COUNTS},
            "most": float(corpus.most_C[c]),
            "share": float(found.mixtures[CELLS][c]),
            "shares": {name: float(shares[c]) for name, shares in found.mixtures.items()},
            "stages": found.stages_KC[:, c].tolist(),
        }


def recipe_text(recipe: Recipe, corpus: MixtureCorpus) -> str:
    """A recipe as TOML, which `mix` reads."""
    lines = [
        f"# By {len(corpus.cells)} cells of {', '.join(corpus.by)}: mq3 data mix",
        f"seed = {recipe.seed}",
        f"held_out = {recipe.held_out}",
        f"held_out_tokens = {recipe.held_out_tokens}",
    ]
    for stage in recipe.stages:
        lines += ["", f"[stages.{emit(stage.name)}]", f"tokens = {stage.tokens}"]
        lines += [f"sequence_length = {stage.sequence_length}", f"max_epochs = {stage.max_epochs}"]
        lines += ["cells = [", *(f"    {_row(cell)}," for cell in stage.cells), "]"]
    return "\n".join(lines) + "\n"


def _row(cell: CellShare) -> str:
    labels = [f"{name} = {emit(list(values))}" for name, values in cell.labels.items()]
    return f"{{ {', '.join([f'share = {cell.share:.9f}', *labels])} }}"


def _key(labels: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple(sorted((name, tuple(values)) for name, values in labels.items()))
