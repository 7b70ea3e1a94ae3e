"""A curriculum of packed text: whole rows of every source, and the texts in them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.cells import Cell
from data_prep.inventory import Inventory, write_inventory
from data_prep.labels import LENGTH_BOUNDS_TOKENS, LENGTHS, Labels
from data_prep.lay_out import FILLER, lay_out
from data_prep.mixing import recipe as recipes
from data_prep.mixing.plan import plan
from data_prep.mixing.recipe import Recipe, StageRecipe
from data_prep.mixing.summary import texts
from data_prep.packed import Packed
from megatron_qwen3.cli import mix_curriculum
from megatron_qwen3.config import ConfigError
from megatron_qwen3.pages import curriculum as page

ROW = 32_768
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "curriculum_long_context.toml"


def inventory(count: int = 40_000, folder: Path = Path("/nowhere")) -> Inventory:
    """Documents of lengths as the web has them, laid out in rows; no files."""
    drawn = np.random.default_rng(0).lognormal(7.0, 1.4, count).astype(np.int64) + 1
    pieces, rows = lay_out(drawn, ROW)
    ranges = [
        np.searchsorted(LENGTH_BOUNDS_TOKENS, tokens, side="right")
        for tokens in (pieces.longest_P, np.minimum(pieces.length_P, ROW), rows.longest_R)
    ]
    shards = []
    for number, length in enumerate(LENGTHS):
        of_row, of_text, of_rows = ranges
        is_filler = pieces.document_P == FILLER
        tokens = np.where(is_filler, 0, pieces.length_P)
        here = of_row == number
        counts = np.bincount(of_text[here], tokens[here], 4).astype(int).tolist()
        filler = int(pieces.length_P[here & is_filler].sum())
        packed = Packed(ROW, filler, dict(zip(LENGTHS, counts, strict=True)))
        size = ROW * int((of_rows == number).sum())
        labels = Labels("crawl", "eng_Latn", "web", "medium", "unknown", length)
        shards.append(Cell(f"{labels.folder}/0", labels, 1, size, size, packed, 0, int(here.sum())))
    return Inventory(folder, {"sha256": "ab"}, 30_000, ("in.jsonl",), tuple(shards))


def stage(tokens: float, length: int = ROW, **settings: Any) -> StageRecipe:
    return StageRecipe("long", int(tokens), length, **settings)


def test_the_recipe_of_the_example_comes_to_three_quarters_of_long_texts() -> None:
    found = inventory()
    recipe = recipes.load(EXAMPLE, ["long_context.tokens=2e7"])
    (planned,) = plan(found, recipe).stages
    rows = {row.value: row for row in texts(planned)}
    long = rows["32k+"].share + rows["16k-32k"].share
    assert long == pytest.approx(0.75, abs=0.02)
    assert rows["4k-16k"].share > 0.9 * (1 - long)
    assert rows["filler"].share < 0.001
    assert sum(row.tokens for row in rows.values()) == pytest.approx(planned.tokens, abs=5)


def test_every_source_gives_whole_rows_and_holds_out_whole_rows() -> None:
    first = StageRecipe("first", 100 * ROW, ROW, shares={"length": {"32k+": 0.3, "16k-32k": 0.7}})
    second = StageRecipe("second", 201 * ROW, 3 * ROW)
    made = plan(inventory(), Recipe((first, second), held_out=0.01))
    for planned in made.stages:
        for share in planned.shares:
            source = share.source
            assert share.tokens % planned.sequence_length == share.cursor % ROW == 0
            assert source.held_out % ROW == 0 and source.held_out >= 0.01 * source.tokens
            assert source.training_tokens == source.tokens - source.held_out
    read = {share.source.name: share.tokens for share in made.stages[0].shares}
    assert read["crawl/eng_Latn/web/32k+"] == 30 * ROW
    assert [share.cursor for share in made.stages[1].shares] == list(read.values())


def test_a_length_with_too_few_tokens_for_its_share_is_told_with_ways_out() -> None:
    asked = stage(1e9, max_epochs=2, shares={"length": {"16k-32k": 0.5, "4k-16k": 0.5}})
    with pytest.raises(ConfigError) as caught:
        plan(inventory(), Recipe((asked,)))
    told = str(caught.value)
    assert "stages.long.shares.length.16k-32k = 0.5 wants " in told
    assert "way out: tokens = at most" in told and "max_epochs = " in told


def test_a_stage_whose_sequences_would_cut_rows_is_refused_with_what_is_valid() -> None:
    for length in (4096, 40_000):
        with pytest.raises(
            ConfigError,
            match=rf"stages\.long\.sequence_length = {length:,}: /nowhere, .*rows of 32,768 .*"
            r"valid: 32,768, a multiple of it, or text that was tokenized without --pack; a recipe "
            r"of packed text alone is examples/curriculum_long_context.toml",
        ):
            plan(inventory(), Recipe((stage(1e6, length),)))
    assert plan(inventory(), Recipe((stage(1e7, 2 * ROW),))).stages[0].tokens


def test_mix_tells_the_lengths_of_texts_and_the_filler_in_the_terminal_and_on_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = inventory(folder=tmp_path)
    for shard in found.cells:
        path = tmp_path / f"{shard.path}.bin"
        path.parent.mkdir(parents=True)
        path.write_bytes(shard.path.encode())
    write_inventory(found)
    command = ["mix", str(tmp_path), "--recipe", str(EXAMPLE), "long_context.tokens=2e7"]
    assert mix_curriculum.main([*command, "--no-page"]) == 0
    told = capsys.readouterr().out
    assert "length of texts" in told and "filler" in told
    made = plan(found, recipes.load(EXAMPLE, ["long_context.tokens=2e7"]))
    page.write(made, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "long_context by length of texts" in html and "filler" in html
    assert "Stages by length of texts" in html and (tmp_path / "page" / "by_texts.png").is_file()
