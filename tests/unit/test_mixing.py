"""A curriculum keeps budgets, shares and caps exactly, or is refused with a way out that works."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import curriculum
from data_prep.cells import Cell
from data_prep.curriculum import Curriculum
from data_prep.inventory import Inventory, write_inventory
from data_prep.labels import LENGTHS, Labels
from data_prep.mixing import recipe as recipes
from data_prep.mixing.plan import plan
from data_prep.mixing.recipe import CellShare, Recipe, StageRecipe
from data_prep.mixing.sampling import fill, language_preferences
from data_prep.mixing.summary import folded, summary, total
from data_prep.shards import Content, DocumentChunk, write_shard
from megatron_qwen3.cli import mix_curriculum
from megatron_qwen3.config import ConfigError
from megatron_qwen3.pretrain import record

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "curriculum.toml"
S = 16


# ---- sampling ----------------------------------------------------------------------------------


def unimax(counts: list[int], budget: float, epochs: float) -> list[float]:
    """Algorithm 1 of arXiv 2304.09151, as it stands there, in tokens."""
    order = sorted(range(len(counts)), key=lambda i: counts[i])
    given, left = [0.0] * len(counts), budget
    for i, k in enumerate(order):
        share = left / (len(counts) - i)
        given[k] = counts[k] * epochs if share > counts[k] * epochs else share
        left -= given[k]
    return given


COUNTS = st.lists(st.integers(1, 10**12), min_size=1, max_size=130)


@settings(deadline=None)
@given(counts=COUNTS, epochs=st.floats(0.5, 16), part=st.floats(0.01, 1))
def test_filling_alike_is_unimax(counts: list[int], epochs: float, part: float) -> None:
    capacities = [epochs * count for count in counts]
    budget = part * sum(capacities)
    ours = fill(budget, language_preferences("unimax", 1.0, counts), capacities)
    assert ours == pytest.approx(unimax(counts, budget, epochs), rel=1e-9)


@settings(deadline=None)
@given(counts=COUNTS, temperature=st.floats(1, 20))
def test_temperature_sampling_is_a_power_of_the_tokens(
    counts: list[int], temperature: float
) -> None:
    powers = np.array(counts, float) ** (1 / temperature)
    ours = language_preferences("temperature", temperature, counts)
    assert ours == pytest.approx(powers / powers.sum(), rel=1e-9)
    natural = language_preferences("natural", 1.0, counts)
    assert natural == pytest.approx(np.array(counts) / sum(counts), rel=1e-9)


@settings(deadline=None)
@given(
    sides=st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(0, 1e9)), min_size=1, max_size=40),
    part=st.floats(0, 1),
)
def test_filling_spends_the_budget_in_proportion_up_to_the_capacities(
    sides: list[tuple[float, float]], part: float
) -> None:
    preferences, capacities = zip(*sides, strict=True)
    budget = part * sum(capacities)
    given_to = fill(budget, preferences, capacities)
    assert sum(given_to) == pytest.approx(budget, rel=1e-9, abs=1e-6)
    assert all(g <= c * (1 + 1e-9) for g, c in zip(given_to, capacities, strict=True))
    levels = [
        g / p
        for g, p, c in zip(given_to, *zip(*sides, strict=True), strict=True)
        if g < c * (1 - 1e-9)
    ]
    assert not levels or max(levels) == pytest.approx(min(levels), rel=1e-6, abs=1e-6)


def test_a_preference_that_is_lost_beside_a_large_one_still_gets_its_part() -> None:
    """Found by the property test of plans: 1 + 1e-17 - 1 is 0."""
    assert fill(10.0, [1.0, 1e-17], [5.0, 20.0]) == pytest.approx([5.0, 5.0])


# ---- plans -------------------------------------------------------------------------------------


def inventory(rows: list[tuple[dict[str, str], int]], folder: Path = Path("/nowhere")) -> Inventory:
    usual = {"source": "crawl", "language": "eng_Latn", "domain": "web", "quality": "medium"}
    usual |= {"education": "unknown", "length": "0-4k"}
    shards = []
    for number, (changes, tokens) in enumerate(rows):
        labels = Labels(**(usual | changes))
        shards.append(Cell(f"{labels.folder}/{number:05}", labels, 1, tokens, 4 * tokens))
    return Inventory(folder, {"sha256": "ab"}, 30_000, ("in.jsonl",), tuple(shards))


def one_stage(tokens: int, **settings: Any) -> Recipe:
    return Recipe((StageRecipe("general", tokens, S, **settings),), held_out=0.0)


def read_of(curriculum: Curriculum, label: str, stage: int = 0) -> dict[str, int]:
    return {row.value: row.tokens for row in summary(curriculum.stages[stage], label)}


ROWS = st.lists(
    st.tuples(
        st.fixed_dictionaries(
            {
                "language": st.sampled_from(("eng_Latn", "deu_Latn", "zho_Hans", "und")),
                "domain": st.sampled_from(("web", "code", "stem")),
                "quality": st.sampled_from(("low", "high")),
                "length": st.sampled_from(LENGTHS[1:3]),
            }
        ),
        st.integers(0, 50_000),
    ),
    min_size=1,
    max_size=25,
)
WEIGHTS = st.fixed_dictionaries(
    {},
    optional={
        "domain": st.dictionaries(st.sampled_from(("web", "code")), st.sampled_from((0, 0.3, 4))),
        "quality": st.dictionaries(st.sampled_from(("low", "high")), st.floats(0, 5)),
    },
)
STAGES = st.lists(
    st.builds(
        StageRecipe,
        st.just("?"),
        st.integers(100, 200_000),
        st.sampled_from((8, S, 100)),
        st.floats(0.3, 6),
        st.sampled_from(recipes.SAMPLINGS),
        st.floats(1, 5),
        WEIGHTS,
        st.sampled_from(({}, {"length": {"4k-16k": 0.25, "16k-32k": 0.75}})),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, stages=STAGES, held_out=st.sampled_from((0.0, 0.01)))
def test_any_plan_keeps_budgets_shares_and_caps_or_is_refused(
    rows: list, stages: list[StageRecipe], held_out: float
) -> None:
    named = tuple(replace(stage, name=f"s{k}") for k, stage in enumerate(stages))
    try:
        made = plan(inventory(rows), Recipe(named, held_out=held_out))
    except ConfigError as error:
        assert re.search("way out|no shard|no tokens", str(error))
        return
    cursors: dict[str, int] = {}
    for stage, asked in zip(made.stages, named, strict=True):
        length = asked.sequence_length
        assert stage.tokens == asked.tokens // length * length
        for share in stage.shares:
            source = share.source
            assert share.tokens % length == 0
            assert share.cursor == cursors.get(source.name, 0)
            cursors[source.name] = share.cursor + share.tokens
            if share.tokens:
                assert cursors[source.name] <= asked.max_epochs * source.training_tokens
                assert asked.weights.get("domain", {}).get(source.labels["domain"], 1) > 0
        for label, fractions in asked.shares.items():
            given_to = read_of(made, label, made.stages.index(stage))
            for value, fraction in fractions.items():
                # A value without any tokens has no row: refused unless its share rounds to nothing.
                assert abs(given_to.get(value, 0) - fraction * asked.tokens) <= 2 * length


def test_weights_multiply_and_sources_keep_their_proportions() -> None:
    rows = [({"domain": "web"}, 100_001), ({"domain": "code", "quality": "high"}, 50_001)]
    made = plan(
        inventory(rows),
        one_stage(32_000, weights={"domain": {"code": 3}, "quality": {"high": 2}}),
    )
    read = read_of(made, "domain")
    assert read["code"] / read["web"] == pytest.approx(0.5 * 6, rel=2e-3)


def test_the_third_stage_is_three_quarters_long_texts_whatever_there_is_most_of() -> None:
    rows = [({"length": length}, 10**6) for length in LENGTHS]
    made = plan(inventory(rows), recipes.load(EXAMPLE, _small()))
    assert read_of(made, "length", 2) == pytest.approx(
        {"16k-32k": 750_000, "4k-16k": 250_000, "0-4k": 0, "32k+": 0}, abs=32_768
    )


def _small() -> list[str]:
    return ["general.tokens=1_000_000", "reasoning.tokens=500_000", "long_context.tokens=1_000_000"]


def test_a_language_that_is_used_up_leaves_its_part_to_the_others() -> None:
    rows = [({"language": "eng_Latn"}, 100_001), ({"language": "deu_Latn"}, 1_001)]
    rows.append(({"language": "zho_Hans"}, 50_001))
    read = read_of(plan(inventory(rows), one_stage(64_000, languages="unimax")), "language")
    assert read["deu_Latn"] == 4 * 1_000 // S * S
    assert read["eng_Latn"] == pytest.approx(30_000, abs=S)
    assert read["zho_Hans"] == pytest.approx(30_000, abs=S)


def test_text_without_a_language_keeps_its_share_when_languages_are_made_alike() -> None:
    rows = [({"language": "eng_Latn"}, 70_001), ({"language": "deu_Latn"}, 10_001)]
    rows.append(({"language": "und", "domain": "code"}, 20_001))
    read = read_of(plan(inventory(rows), one_stage(20_000, languages="unimax")), "language")
    assert read["und"] == pytest.approx(0.2 * 20_000, abs=S)
    assert read["eng_Latn"] == pytest.approx(0.4 * 20_000, abs=S)


def test_shards_that_no_decision_keeps_apart_are_one_source() -> None:
    rows = [({"quality": quality}, 1_000) for quality in ("low", "high", "low")]
    (share,) = plan(inventory(rows), one_stage(1_600)).stages[0].shares
    assert [shard.tokens for shard in share.source.shards] == [1_000] * 3
    weighted = one_stage(1_600, weights={"quality": {"high": 2}})
    shares = plan(inventory(rows), weighted).stages[0].shares
    assert [share.source.name for share in shares] == [
        "crawl/eng_Latn/web/high",
        "crawl/eng_Latn/web/low",
    ]


def test_held_out_ends_are_a_fraction_or_a_window_but_none_of_tiny_sources() -> None:
    rows = [({"language": f"l{n}"}, n) for n in (10**6, 10_000, 200)]
    recipe = replace(one_stage(1_600), held_out=0.001, held_out_tokens=900)
    shares = plan(inventory(rows), recipe).stages[0].shares
    assert {s.source.tokens: s.source.held_out for s in shares} == {10**6: 900, 10_000: 17, 200: 0}


# ---- refusals ----------------------------------------------------------------------------------


def refusal(rows: list, recipe: Recipe) -> str:
    with pytest.raises(ConfigError) as error:
        plan(inventory(rows), recipe)
    return str(error.value)


def test_more_than_the_cap_allows_is_refused_and_each_way_out_works() -> None:
    rows = [({"language": "eng_Latn"}, 10_001), ({"language": "deu_Latn"}, 501)]
    recipe = one_stage(50_000)
    message = refusal(rows, recipe)
    assert "stages.general wants 50,000 tokens, but 42,000 are left" in message
    tokens = int(re.search(r"tokens = at most ([\d,]+)", message)[1].replace(",", ""))
    epochs = float(re.search(r"max_epochs = ([\d.]+) or more", message)[1])
    plan(inventory(rows), one_stage(tokens))
    plan(inventory(rows), one_stage(50_000, max_epochs=epochs))


def test_a_share_that_cannot_be_had_names_itself_and_what_stages_before_took() -> None:
    rows = [({"length": "4k-16k"}, 10_001), ({"length": "16k-32k"}, 2_001)]
    stages = (
        StageRecipe("general", 8_000, S, 1.0),
        StageRecipe("long", 4_000, S, 1.0, shares={"length": {"16k-32k": 0.75, "4k-16k": 0.25}}),
    )
    message = refusal(rows, Recipe(stages, held_out=0.0))
    assert "stages.long.shares.length.16k-32k = 0.75 wants 3,008 tokens" in message
    assert re.search(r"less 1,[34]\d\d that stages before read", message)
    assert "a smaller share" in message


def test_all_shares_that_cannot_be_had_are_named_at_once_and_each_way_out_works() -> None:
    rows = [
        ({"length": "4k-16k"}, 10_001),
        ({"length": "16k-32k"}, 2_001),
        ({"length": "32k+"}, 601),
    ]

    def recipe(tokens: float, max_epochs: float) -> Recipe:
        shares = {"length": {"16k-32k": 0.7, "4k-16k": 0.1, "32k+": 0.2}}
        return Recipe((StageRecipe("long", tokens, S, max_epochs, shares=shares),), held_out=0.0)

    message = refusal(rows, recipe(9_000, 1.0))
    assert re.findall(r"shares\.length\.(\S+) = \S+ wants", message) == ["16k-32k", "32k+"]
    tokens = int(re.search(r"tokens = at most ([\d,]+)", message)[1].replace(",", ""))
    epochs = float(re.search(r"max_epochs = ([\d.]+) or more", message)[1])
    plan(inventory(rows), recipe(tokens, 1.0))
    plan(inventory(rows), recipe(9_000, epochs))


def test_labels_whose_sources_would_share_a_name_are_refused() -> None:
    rows = [({"source": "a/b", "language": "c"}, 1_000), ({"source": "a", "language": "b/c"}, 900)]
    message = refusal(rows, one_stage(160))
    assert "two sources would be named a/b/c/web: source=a/b, language=c, domain=web; " in message
    assert "and source=a, language=b/c, domain=web; give one" in message


def test_labels_that_nothing_has_are_refused_with_what_there_is() -> None:
    rows = [({"domain": "web"}, 1_000), ({"domain": "recipes"}, 1_000)]
    message = refusal(rows, one_stage(160, weights={"domain": {"recipe": 2}}))
    assert "weights.domain.recipe: no shard" in message
    assert "did you mean recipes?; there are: recipes, web" in message
    plan(inventory(rows), one_stage(160, weights={"domain": {"stem": 2}}))  # known, not there
    assert "shares.domain.stem" in refusal(rows, one_stage(160, shares={"domain": {"stem": 1.0}}))


def test_a_recipe_for_labels_that_nothing_has_is_mended_by_the_setting_that_the_error_names() -> (
    None
):
    short = inventory([({"length": "0-4k"}, 100_000), ({"length": "32k+"}, 100_000)])
    small = ["general.tokens=8192", "reasoning.tokens=8192", "long_context.tokens=32768"]
    small += ["held_out=0", 'general.weights.domain={"cooking" = 2}']
    for wrong in ("general.weights.domain", "long_context.shares.length"):
        with pytest.raises(ConfigError, match=wrong) as refused:
            plan(short, recipes.load(EXAMPLE, small))
        small += re.findall(r"way out: '(.*)', say", str(refused.value))
    assert 'long_context.shares.length={"0-4k" = 1.0}' in small
    plan(short, recipes.load(EXAMPLE, small))


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("general.tokns=3", "stages.general.tokns is not known; did you mean tokens"),
        ("genral.tokens=3", "no stage genral; did you mean general"),
        ("general.weights.qualty.high=2", "qualty: no label of shards; did you mean quality"),
        ("general.languages=unimx", "'unimx' is not one of natural, temperature, unimax"),
        ("reasoning.temperature=2", 'temperature goes with languages = "temperature"'),
        ("general.max_epochs=0", "max_epochs = 0.0 must be above 0"),
        ("general.tokens=2.5", "tokens = 2.5 is not a whole number"),
        ("general.tokens=100", "less than one sequence"),
        ("general.weights.domain=3", "weights.domain = 3 is not a table"),
        ("long_context.shares.domain={web=1}", "only one label can have fractions"),
        ('long_context.shares.length={"4k-16k"=0.5}', "adds up to 0.5, not 1"),
        ("general.cells=[{share=0.5}]", "cells: their shares add up to 0.5, not 1"),
        ("general.cells=[{share=2}]", "cells[0].share = 2 is not from 0 to 1"),
        ('general.cells=[{share=1, qualty=["high"]}]', "qualty is not known; did you mean quality"),
        ("long_context.cells=[{share=1}]", "has cells and shares; only one"),
        ("held_out=1.5", "held_out = 1.5 must be below 1"),
        ("seeds=1", "seeds is not known; did you mean seed"),
        ("general", "is not key=value"),
    ],
)
def test_a_wrong_recipe_says_where_and_what_would_be_right(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        recipes.load(EXAMPLE, [override])


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for text, complaint in (("[", "not valid TOML"), ("seed = 1", "no stages"), (None, "be read")):
        path = tmp_path / "recipe.toml"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigError, match=f"recipe.toml: .*{complaint}"):
            recipes.load(path)


def test_cells_give_exact_shares_to_labels_that_go_together() -> None:
    rows = [
        ({"domain": domain, "quality": quality, "language": language}, 10_000)
        for domain in ("web", "code")
        for quality in ("low", "medium", "high")
        for language in ("eng_Latn", "deu_Latn")
    ]
    cells = (
        CellShare(0.55, domain=("web",), quality=("high",)),
        CellShare(0.05, domain=("web",), quality=("low", "medium")),
        CellShare(0.0, domain=("code",), quality=("low",)),
        CellShare(0.4, domain=("code",), quality=("medium", "high")),
    )
    made = plan(inventory(rows), one_stage(S * 1000, cells=cells, max_epochs=1))
    read = {share.source.name: share.tokens for share in made.stages[0].shares}
    assert sum(read.values()) == S * 1000
    for cell, sequences in zip(cells, (550, 50, 0, 400), strict=True):
        own = [s for s in made.stages[0].shares if cell.has(s.source.labels)]
        assert sum(share.tokens for share in own) == S * sequences
    assert read["crawl/eng_Latn/web/high"] == read["crawl/deu_Latn/web/high"]  # as there is of each
    left_out = plan(inventory(rows), one_stage(S * 1000, cells=(CellShare(1, quality=("high",)),)))
    assert read_of(left_out, "quality") == {"high": S * 1000, "low": 0, "medium": 0}


@pytest.mark.parametrize(
    ("cells", "complaint"),
    [
        (
            (CellShare(0.5, domain=("web",)), CellShare(0.5, quality=("medium",))),
            "stages.general.cells[0] and [1] both have crawl/eng_Latn/web/medium",
        ),
        (
            (CellShare(0.4, domain=("web",)), CellShare(0.6, domain=("code",))),
            "stages.general.cells[1] = 0.6 of domain code wants 9,600 tokens, but 8,000 are left",
        ),
        (
            (CellShare(1, domain=("cod",)),),
            "no shard of /nowhere has this domain; did you mean code",
        ),
    ],
)
def test_cells_that_cannot_be_are_refused(cells: tuple[CellShare, ...], complaint: str) -> None:
    rows = [({"domain": "web"}, 16_000), ({"domain": "code"}, 4_001)]
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        plan(inventory(rows), one_stage(S * 1000, cells=cells, max_epochs=2))


# ---- the tool ----------------------------------------------------------------------------------


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Two shards with origins, 40 documents of 50 and 30 of 20 tokens; line n made document n."""
    folder = tmp_path / "tokens"
    rows = [({"domain": "web"}, 40, 50), ({"domain": "<b>&code"}, 30, 20)]
    made = inventory([(labels, n * length) for labels, n, length in rows], folder)
    cells: list[Cell] = []
    for cell, (_, documents, length) in zip(made.cells, rows, strict=True):
        cell = replace(cell, documents=documents)
        origins = np.zeros(documents, [("file", "<u4"), ("line", "<u8"), ("id_end", "<u8")])
        origins["line"] = 1 + np.arange(documents)
        ids = [f"d{n}".encode() for n in range(documents)]
        origins["id_end"] = np.cumsum([len(i) for i in ids])
        stream = np.arange(documents * length)
        chunk = DocumentChunk(stream, np.full(documents, length), origins, b"".join(ids))
        cells += write_shard(folder, cell.path, np.uint16, [Content(cell, [chunk])])
    write_inventory(replace(made, cells=tuple(cells)))
    return folder


RECIPE = """
held_out = 0.0
[stages.general]
tokens = 3_000
sequence_length = 16
max_epochs = 2
[stages.general.weights.domain]
web = 0.5
"""


def test_mixing_prints_and_writes_what_each_stage_sees(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    command = ["mix", str(tokens), "--recipe", str(tmp_path / "recipe.toml"), "general.tokens=1600"]
    assert mix_curriculum.main(command) == 0
    printed = capsys.readouterr().out
    for text in ("general in sequences of 16", "1.60k", "<b>&code", "63.0 %"):
        assert text in printed
    page = (tokens / "curriculum.html").read_text()
    assert "<b>&code" not in page
    assert "&lt;b&gt;&amp;code" in page
    assert {p.stem for p in (tokens / "curriculum").glob("*.png")} == {
        "by_domain", "languages", "epochs",
    }  # fmt: skip
    made = curriculum.read(tokens / "curriculum.json")
    assert made.stages[0].tokens == 1_600
    assert mix_curriculum.main(["show", str(tokens / "curriculum.json")]) == 0
    assert "63.0 %" in capsys.readouterr().out


def test_what_stages_see_is_one_object_of_json_with_every_row(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    command = ["mix", str(tokens), "--recipe", str(tmp_path / "recipe.toml"), "--no-page"]
    assert mix_curriculum.main(command) == 0
    capsys.readouterr()
    path = tokens / "curriculum.json"
    assert mix_curriculum.main(["show", str(path), "--json", "--rows", "1"]) == 0
    told = json.loads(capsys.readouterr().out)["stages"]
    for row, stage in zip(told, curriculum.read(path).stages, strict=True):
        assert (row["name"], row["sequence_length"]) == (stage.name, stage.sequence_length)
        assert row["all"]["tokens"] == stage.tokens and row["texts"] == []
        for rows in row["by"].values():
            assert sum(part["tokens"] for part in rows) == stage.tokens
            assert sum(part["sources"] for part in rows) == len(stage.shares)
    assert mix_curriculum.main(["show", str(tmp_path / "nowhere.json"), "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_what_cannot_be_is_an_error_and_writes_nothing(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    command = ["mix", str(tokens), "--recipe", str(tmp_path / "recipe.toml"), "general.tokens=1e6"]
    assert mix_curriculum.main(command) == 2
    assert "way out" in capsys.readouterr().err
    assert not (tokens / "curriculum.json").exists()


def test_a_plan_goes_on_after_what_a_run_has_read(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from megatron_qwen3.config import Config
    from megatron_qwen3.settings import DataConfig, RunConfig, TrainConfig

    (tmp_path / "recipe.toml").write_text(RECIPE)
    command = ["mix", str(tokens), "--recipe", str(tmp_path / "recipe.toml"), "--no-page"]
    assert mix_curriculum.main(command) == 0
    config = Config(
        run=RunConfig(name="run", dir=str(tmp_path)),
        data=DataConfig(16, curriculum=str(tokens / "curriculum.json"), stage="general"),
        train=TrainConfig(steps=40, global_batch=4),
    )
    (config.run_dir / "checkpoints" / "step_00000020").mkdir(parents=True)
    record.prepare(config, 0).write(config.run_dir)
    after = [*command, "--after", str(config.run_dir), "general.tokens=1_600"]
    assert mix_curriculum.main(after) == 0
    shares = curriculum.read(tokens / "curriculum.json").stages[0].shares
    assert sum(share.cursor for share in shares) == 20 * 4 * 16
    assert all(shard.mark for share in shares for shard in share.source.shards)
    assert "put together otherwise than in" not in capsys.readouterr().out
    assert mix_curriculum.main([*after, "held_out=0.1"]) == 0
    assert "2 sources (crawl/eng_Latn/" in (printed := capsys.readouterr().out)
    assert "put together otherwise than in" in printed
    assert mix_curriculum.main([*command, "--after", str(tmp_path)]) == 2


def test_a_row_of_a_step_is_found_again_down_to_the_line_it_was_made_from(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from megatron_qwen3.config import Config
    from megatron_qwen3.pretrain.data import Mixture
    from megatron_qwen3.pretrain.provenance import locate
    from megatron_qwen3.settings import DataConfig, RunConfig, TrainConfig

    (tmp_path / "recipe.toml").write_text(RECIPE)
    assert mix_curriculum.main(["mix", str(tokens), "--recipe", str(tmp_path / "recipe.toml")]) == 0
    config = Config(
        run=RunConfig(name="run", dir=str(tmp_path)),
        data=DataConfig(16, curriculum=str(tokens / "curriculum.json"), stage="general"),
        train=TrainConfig(steps=40, global_batch=4),
    )
    config.run_dir.mkdir()
    history = record.prepare(config, 0)
    history.write(config.run_dir)
    mixture = Mixture(history.parts[-1])
    for step, row in ((1, 0), (7, 3), (40, 2)):
        found = locate(config.run_dir, step, row)
        trained = mixture.batch(4 * (step - 1) + row, 1).tokens_BS[0]
        assert np.array_equal(np.concatenate([p.tokens for p in found.pieces]), trained)
        length = 50 if "web" in found.source else 20
        for piece in found.pieces:
            assert piece.document == piece.place // length == piece.tokens[0] // length
            assert (piece.file, piece.line) == ("in.jsonl", piece.document + 1)
            assert piece.id == f"d{piece.document}"
    capsys.readouterr()
    assert mix_curriculum.main(["locate", str(config.run_dir), "7", "1", "--rank", "1", "2"]) == 0
    assert f"global sample {4 * 6 + 3}: crawl" in capsys.readouterr().out
    assert mix_curriculum.main(["locate", str(config.run_dir), "7", "3", "--json"]) == 0
    told, found = json.loads(capsys.readouterr().out), locate(config.run_dir, 7, 3)
    assert (told["sample"], told["source"]) == (4 * 6 + 3, found.source)
    for row, piece in zip(told["pieces"], found.pieces, strict=True):
        assert (row["shard"], row["document"], row["place"]) == (
            piece.shard,
            piece.document,
            piece.place,
        )
        assert (row["tokens"], row["id"]) == (len(piece.tokens), piece.id)
    for wrong in (["0", "0"], ["41", "0"], ["50", "0"], ["7", "4"], ["7", "2", "--rank", "1", "2"]):
        status = mix_curriculum.main(["locate", str(config.run_dir), *wrong])
        assert (status, wrong) == (2 if wrong != ["41", "0"] else 0, wrong)
    for wrong, why in (
        ([str(config.run_dir), "7", "0", "--rank", "0", "0"], "0 data ranks do not divide the 4"),
        ([str(config.run_dir), "7", "0", "--rank", "0", "3"], "3 data ranks do not divide the 4"),
        ([str(config.run_dir), "0", "0", "--rank", "0", "2"], "steps count from 1"),
        ([str(tokens), "7", "0", "--rank", "0", "2"], "no data.json in this folder"),
    ):
        assert mix_curriculum.main(["locate", *wrong]) == 2
        assert why in capsys.readouterr().err


def test_the_rest_of_a_table_is_one_line_with_the_same_sums() -> None:
    rows = [({"language": f"l{n}"}, 1_000 + n) for n in range(30)]
    stage = plan(inventory(rows), one_stage(16_000)).stages[0]
    short = folded(summary(stage, "language"), 5)
    assert len(short) == 6
    assert sum(row.tokens for row in short) == total(stage).tokens == 16_000
    assert sum(row.share for row in short) == pytest.approx(1)
