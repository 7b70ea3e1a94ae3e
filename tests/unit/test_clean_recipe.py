"""A cleaning follows its recipe, in its order; by default, the plain rules."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("datatrove")

from datatrove.data import Document

from data_prep.bounds import CodeBounds, ProseBounds, QualityBounds
from data_prep.clean import recipe
from data_prep.clean.label import labelling
from data_prep.clean.own_steps import OwnStep
from data_prep.clean.settings import SETTINGS, STEPS, CleaningInput, CleanSettings, tasks_begun
from data_prep.quality import judge, judge_code
from data_prep.units import split
from megatron_qwen3.cli import clean_corpus
from megatron_qwen3.config import ConfigError
from megatron_qwen3.toml import parse
from tests import plain_quality
from tests.judged import CODES, TEXTS

ENGLISH = (
    "The river rises in the hills of the north, where rain falls on most days of the year. For the "
    "first forty miles it runs through woods; below the mill (built in 1820) it becomes wide and "
    "slow.\nFarmers take water from it between May and September. An old law says how much each of "
    "them may take: two hours in the morning, and one in the evening."
)
OWN = """
def at_most(document, words):
    return "too many words" if len(document.text.split()) > words else None

class Shout:
    def __init__(self, mark="!"):
        self.mark = mark
    def __call__(self, document):
        document.text = document.text.upper() + self.mark

def says_more(document):
    document.metadata["seen"] = document.text[:3]

def breaks(document):
    return 1 / 0

def numbers(document):
    return 7

def sets(document, what, value=None):
    if what in ("text", "id", "metadata"):
        setattr(document, what, value)
    else:
        document.metadata[what] = value

def sets_what_nothing_writes(document):
    document.metadata["odd"] = object()

def sets_half_a_character(document):
    document.metadata["odd"] = document.text + chr(0xd800)

def forgets(document):
    del document.metadata["domain"]

def counts(document):
    return f"{len(document.text)} characters"

class Unsure:
    def filter(self, document):
        return None

class Wordy:
    def filter(self, document):
        return False, 7

class Mute:
    def format(self, text):
        return None

NOTHING = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "steps_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("steps_of_mine", None)


def _settings(**values: Any) -> CleanSettings:
    return CleanSettings((CleaningInput("here", "/dev/null"),), "out", **values)


def _labels(**labels: Any) -> dict[str, Any]:
    names = ("source", "language", "domain", "quality", "education", "file")
    return {**dict.fromkeys(names), "source": "here", "file": "a.jsonl", **labels}


def _label(settings: CleanSettings, text: str, **labels: Any) -> Document:
    data: Any = [Document(text=text, id="7", metadata=_labels(**labels))]
    for step in labelling(settings):
        data = step.run(data)
    (document,) = data
    return document


@given(TEXTS, st.sampled_from(CODES))
def test_the_default_recipe_judges_as_the_rules_do_plainly_written(text: str, code: str) -> None:
    units = split(text)
    assert vars(judge(text, units, code)) == vars(plain_quality.judge(text, units, code))
    assert vars(judge_code(text, units)) == vars(plain_quality.judge_code(text, units))


@given(
    similarity=st.floats(0.6, 2),
    languages=st.lists(st.sampled_from(CODES[:-1])),
    prose=st.dictionaries(
        st.sampled_from(["min_letters", "max_symbols", "max_bullets"]),
        st.floats(0, 1e9) | st.just(float("inf")),
    ),
    options=st.dictionaries(st.text(), st.dictionaries(st.text(), st.integers() | st.text())),
)
def test_a_recipe_is_read_back_as_it_was_written(
    similarity: float, languages: list[str], prose: dict[str, float], options: dict[str, Any]
) -> None:
    bounds = QualityBounds(ProseBounds(**prose), CodeBounds(max_line=3.0))
    settings = CleanSettings(
        (), "", 1, similarity=similarity, languages=tuple(languages), quality=bounds
    )
    settings = replace(settings, options=options)
    tree = parse(recipe.text(settings), "mine.toml", "a recipe")
    assert tree == recipe.tree_of(settings)


def test_a_file_changes_what_it_names_and_options_and_pairs_go_before_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "similarity = 0.9\nfilters = false\n[quality.prose]\nmin_letters = 50\n"
        "[quality.by_language.deu_Latn]\nmax_bullets = 0.5\n"
    )
    given = recipe.read(str(path), {"filters": True}, ["quality.prose.short_line=10"])
    settings = CleanSettings((), "", **given)
    assert (settings.similarity, settings.filters) == (0.9, True)
    assert settings.quality.prose == ProseBounds(min_letters=50, short_line=10)
    assert settings.quality.of("deu_Latn").max_bullets == 0.5
    assert settings.quality.of("tha_Thai").min_sentences == 0  # of the default, beside it
    assert settings.quality.of("kor_Hang").min_letters == 120


def test_languages_of_a_recipe_have_any_usual_code(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('languages = ["de", "eng", "rus_Cyrl", "gone"]')
    found = recipe.read(str(tmp_path / "x.toml"), {})["languages"]
    assert found == ("deu_Latn", "eng_Latn", "rus_Cyrl", "gone")  # the last is refused by its name


def test_bounds_decide_per_language_and_a_rule_that_is_left_out_counts_for_nothing() -> None:
    strict = {"eng_Latn": {"min_letters": 1000.0}}
    bounds = QualityBounds(by_language=strict)
    fault = _label(_settings(quality=bounds), ENGLISH, language="eng_Latn").metadata["_dropped"]
    assert fault == "too short"
    assert (
        "_dropped" not in _label(_settings(quality=bounds), ENGLISH, language="deu_Latn").metadata
    )
    most = {name: float("inf") for name in vars(ProseBounds()) if name.startswith("max_")}
    least = dict.fromkeys(("min_letter_share", "min_letters", "min_sentences"), 0.0)
    nothing = ProseBounds(**most, **least, word_length_factor=0.0, placeholders=())
    assert judge("w q " * 50, split("w q " * 50), "eng_Latn", nothing).fault is None
    assert judge("w q " * 50, split("w q " * 50), "eng_Latn", nothing).quality == 1


def test_placeholders_are_found_in_whatever_case_they_are_written() -> None:
    bounds = QualityBounds(ProseBounds(placeholders=("Lorem Ipsum", "ÜBER den hügel")))
    for phrase in ("lorem ipsum", "LOREM IPSUM", "Über den Hügel"):
        text = f"{ENGLISH} {phrase} dolor."
        document = _label(_settings(quality=bounds), text, language="eng_Latn")
        assert document.metadata.get("_dropped") == "placeholder"


@pytest.mark.usefixtures("own")
def test_steps_of_ones_own_act_in_the_recipes_order_with_their_options() -> None:
    mine = ("steps_of_mine:says_more", "steps_of_mine:Shout", "steps_of_mine:at_most")
    options = {mine[1]: {"mark": "?"}, mine[2]: {"words": 3}}
    settings = _settings(steps=(mine[0], "normalize", *mine[1:]), options=options)
    document = _label(settings, "\u200bone two")
    assert (document.text, document.metadata["seen"]) == ("ONE TWO?", "\u200bon")
    assert "_dropped" not in document.metadata
    assert _label(settings, "one two three four").metadata["_dropped"] == "too many words"


@pytest.mark.usefixtures("own")
def test_later_steps_count_the_units_of_the_text_that_a_step_left() -> None:
    steps = ("quality", "steps_of_mine:Shout")
    assert "_units" in _label(_settings(steps=steps[:1]), ENGLISH).metadata
    assert "_units" not in _label(_settings(steps=steps), ENGLISH).metadata


def test_datatroves_filters_and_formatters_are_steps() -> None:
    filters, formatters = "datatrove.pipeline.filters", "datatrove.pipeline.formatters"
    settings = _settings(
        steps=(f"{filters}:RegexFilter", f"{formatters}:PIIFormatter"),
        options={f"{filters}:RegexFilter": {"regex_exp": "secret"}},
    )
    assert "_dropped" in _label(settings, "a secret").metadata
    kept = _label(settings, "Write to someone@somewhere.org, please.")
    assert "_dropped" not in kept.metadata and "someone@somewhere.org" not in kept.text


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        ("nowhere_at_all:X", {}, "step nowhere_at_all:X cannot be imported (ModuleNotFoundError"),
        ("steps_of_mine:Missing", {}, "cannot be imported (AttributeError"),
        ("steps_of_mine:Shout", {"volume": 3}, "cannot be made with the options {'volume': 3}"),
        ("steps_of_mine:NOTHING", {}, "cannot be made"),
        ("steps_of_mine:breaks", {}, "failed at document 7 of mine.jsonl (ZeroDivisionError"),
        ("steps_of_mine:numbers", {}, "gave 7; valid: None, or the reason"),
    ],
)
def test_what_is_wrong_with_a_step_of_ones_own_is_told_in_a_line(
    step: str, options: dict[str, Any], message: str
) -> None:
    settings = _settings(steps=(step,), options={step: options})
    with pytest.raises(ConfigError) as error:
        _label(settings, "text", file="mine.jsonl")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        ("sets", {"what": "text"}, "`$.text`"),
        ("sets", {"what": "text", "value": 7}, "`$.text`"),
        ("sets", {"what": "id", "value": []}, "`$.id`"),
        ("sets", {"what": "metadata"}, "metadata"),
        ("sets", {"what": "quality", "value": 1.5}, "<= 1.0 - at `$.quality`"),
        ("sets", {"what": "domain", "value": "x" * 51}, "length <= 50 - at `$.domain`"),
        ("sets", {"what": "language", "value": 7}, "`$.language`"),
        ("sets", {"what": "source"}, "source"),
        ("sets_what_nothing_writes", {}, "odd"),
        ("sets_half_a_character", {}, "odd"),
        ("forgets", {}, "domain"),
        ("Unsure", {}, "gave None; valid: true or false"),
        ("Wordy", {}, "gave (False, 7); valid: true or false"),
        ("Mute", {}, "`$.text`"),
    ],
)
def test_what_a_step_of_ones_own_leaves_of_a_document_is_looked_at_before_anything_else_is_done(
    step: str, options: dict[str, Any], message: str
) -> None:
    step = f"steps_of_mine:{step}"
    settings = _settings(steps=(step, "normalize", "quality"), options={step: options})
    with pytest.raises(ConfigError) as error:
        _label(settings, "text", file="mine.jsonl", source="here")
    told = str(error.value)
    assert told.startswith(f"step {step} ") and message in told and "\n" not in told


@pytest.mark.usefixtures("own")
def test_a_step_of_ones_own_has_few_reasons() -> None:
    step = OwnStep("steps_of_mine:counts", {})
    with pytest.raises(
        ConfigError, match="step .*counts gave over 1,000 different reasons.*; valid"
    ):
        for size in range(2000):
            step(Document(text="x" * size, id="7", metadata=_labels()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": ("normalise",)}, "'normalise' is not known; did you mean normalize?"),
        ({"steps": ("xyz",)}, "valid: domain, normalize, language, quality, scores, contaminat"),
        ({"steps": ("domain", "domain")}, "step domain stands twice"),
        ({"options": {"a:B": {}}}, "options.a:B: no step of this name is in steps"),
        ({"steps": ("domain",), "languages": ("eng_Latn",)}, "steps does not name language"),
        ({"steps": ("domain",), "models": {"language": "x"}}, "steps does not name language"),
        ({"steps": ("domain",), "models": {"safety": "x"}}, "steps does not name scores"),
        ({"quality": QualityBounds(ProseBounds(min_letters=-1))}, r"prose.min_letters = -1"),
        ({"quality": QualityBounds(ProseBounds(placeholders=("",)))}, "an empty phrase"),
        ({"quality": QualityBounds(by_language={"xyz": {}})}, "by_language.xyz: neither one of"),
        (
            {"quality": QualityBounds(by_language={"Hans": {"placeholders": 1.0}})},
            "by_language.Hans.placeholders is not known",
        ),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_name(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _settings(**settings).validate()


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("similarity", "--set 'similarity' is not KEY=VALUE"),
        ("quality.prose.max_bullet=3", "max_bullet is not known; did you mean max_bullets?"),
        ("similarity=much", 'similarity = "much" is not a number'),
        ("tasks=3", "tasks is not known"),
        ("options=3", "options = 3 is not a table of tables"),
    ],
)
def test_a_pair_that_is_wrong_is_told_in_a_line(
    pair: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clean_corpus.main(["run", "--show", "--set", pair]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_the_recipe_that_is_shown_is_the_one_that_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clean_corpus.main(["run", "--show", "--no-filters", "--set", "similarity=0.8"]) == 0
    path = tmp_path / "mine.toml"
    path.write_text(capsys.readouterr().out)
    settings = CleanSettings((), "", **recipe.read(str(path), {}))
    assert (settings.filters, settings.similarity, settings.steps) == (False, 0.8, STEPS)


def test_going_on_with_another_recipe_is_refused_and_each_difference_named(tmp_path: Path) -> None:
    settings = CleanSettings((), str(tmp_path / "out"), steps=STEPS[:-1])
    settings.claim({})
    bounds = QualityBounds(ProseBounds(min_letters=100), by_language={})
    other = replace(settings, steps=STEPS, quality=bounds)
    with pytest.raises(ConfigError) as error:
        other.claim({})
    told = str(error.value)
    for words in (
        '"quality", "scores"], is ["domain", "normalize", "language", "quality", "scores", "conta',
        "quality.prose.min_letters was 240.0, is 100",
        "quality.by_language.Hans.min_letters was 120.0, is not there",
    ):
        assert words in told
    settings.claim({})


def test_a_folder_whose_settings_have_the_names_of_before_goes_on(tmp_path: Path) -> None:
    settings = CleanSettings(
        (), str(tmp_path), tasks=3, similarity=0.8, models={"safety": "s.bin"}, hidden=True
    )
    settings.claim({})
    path = settings.folder(SETTINGS)
    now = json.loads(path.read_text())
    before = {name: now[name] for name in ("inputs", "out", "tasks", "languages", "files")}
    before |= {"resemblance": 0.8, "evaluation": [], "models": [["safety", "s.bin"]]}
    path.write_text(json.dumps(before))
    settings = settings.as_begun()
    settings.claim({})
    with pytest.raises(ConfigError, match=r"similarity was 0.8, is 0.9"):
        replace(settings, similarity=0.9).claim({})


def test_fields_that_are_kept_stay_those_that_a_cleaning_began_with(tmp_path: Path) -> None:
    settings = CleanSettings((), str(tmp_path), keep_fields=("none",))
    settings.claim({})
    for other in (("all",), ("url",)):
        with pytest.raises(ConfigError, match=r'keep_fields was \["none"\], is \["'):
            replace(settings, keep_fields=other).as_begun().claim({})
    path = settings.folder(SETTINGS)
    before = {k: v for k, v in json.loads(path.read_text()).items() if k != "keep_fields"}
    path.write_text(json.dumps(before))
    replace(settings, keep_fields=("all",)).as_begun().claim({})  # by default: as it began
    with pytest.raises(ConfigError, match=r'keep_fields was \["none"\], is \["url"\]'):
        replace(settings, keep_fields=("url",)).as_begun().claim({})


def test_settings_of_the_folder_that_a_command_stands_in_are_not_those_of_a_cleaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / SETTINGS).write_text("no JSON")
    monkeypatch.chdir(tmp_path)
    assert clean_corpus.main(["run", "--show"]) == 0
    assert clean_corpus.main(["run", f"a={SETTINGS}"]) == 2
    assert "--out FOLDER is missing" in capsys.readouterr().err


def test_a_cleaning_keeps_the_number_of_tasks_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_prep.clean import stages

    started: list[tuple[int, int]] = []
    monkeypatch.setattr(
        stages, "run_local", lambda settings, _, workers: started.append((settings.tasks, workers))
    )
    monkeypatch.setattr(clean_corpus, "_tell", lambda *_: None)
    (tmp_path / "a.txt").write_text(ENGLISH)
    command = ["run", f"web={tmp_path / 'a.txt'}", "--out", str(tmp_path / "out")]
    for cores in (2, 8):
        monkeypatch.setattr(clean_corpus, "cores", lambda cores=cores: cores)
        assert clean_corpus.main(command) == 0
    assert started == [(8, 2), (8, 8)]
    assert tasks_begun(tmp_path / "out") == 8
    assert recipe.read(str(tmp_path / "out/recipe.toml"), {})["similarity"] == 0.75
    assert clean_corpus.main([*command, "--tasks", "9"]) == 2
    assert "tasks was 8, is 9" in capsys.readouterr().err


def test_the_report_is_printed_as_json_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_prep.clean import stages

    rows = [["web", "eng_Latn", "kept", 2, 30], ["web", "deu_Latn", "too short", 1, 5]]
    out = tmp_path / "out"

    def made(settings: CleanSettings, *_: Any) -> None:
        content = {"version": 1, "rows": rows, "problems": {}, "first_problems": []}
        settings.folder("report.json").write_text(json.dumps(content))

    monkeypatch.setattr(stages, "run_local", made)
    (tmp_path / "a.txt").write_text(ENGLISH)
    command = ["run", f"web={tmp_path / 'a.txt'}", "--out", str(out), "--json"]
    for words in (command, command, ["show", str(out), "--json"]):
        assert clean_corpus.main(words) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["rows"], found["read"], found["kept"], found["kept_bytes"]) == (
            rows,
            3,
            2,
            30,
        )
        assert found["documents"] == str(out / "documents")
    rows.pop(0)
    (out / "report.json").unlink()
    assert clean_corpus.main(command) == 2
    told = capsys.readouterr()
    assert json.loads(told.out)["kept"] == 0
    assert "not one of 1 documents was kept" in told.err and told.err.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        clean_corpus.main(["run", "--show", "--json"])


def test_a_recipe_that_a_full_disk_took_is_no_success(tmp_path: Path) -> None:
    command = [sys.executable, "tools/clean_corpus.py", "run", "--show"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "No space left" in done.stderr
