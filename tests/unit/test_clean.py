"""Cleaning keeps good documents once, lists dropped ones with reasons, and survives bad input."""

import gzip
import io
import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("datatrove")

from rich.console import Console

from data_prep import documents
from data_prep.clean import plan, report, stages
from data_prep.clean.dedup import groups
from data_prep.clean.dedup.groups import Forest
from data_prep.clean.files import new_documents, read_documents
from data_prep.clean.settings import CleaningInput, CleanSettings
from data_prep.clean.write import MOST_ROWS, Tally
from data_prep.labels import level, said
from data_prep.languages import code_of
from data_prep.tokenization.work import LabelBook
from megatron_qwen3.config import ConfigError

_ESPERANTO = (
    "La rivero fluas de la montoj al la maro, kaj multaj homoj loĝas ĉe ĝiaj bordoj. Ili manĝas "
    "fiŝojn kaj trinkas akvon, kiu venas el la malnova fonto."
)
# fmt: off
_WORDS = (
    "river", "hill", "water", "mill", "meadow", "winter", "summer", "farmer", "village", "bridge",
    "stone", "road", "market", "paper", "letter", "morning", "evening", "harvest", "garden",
    "kitchen", "against", "people", "between", "without", "carried", "built", "wrote", "found",
    "became", "remained", "several", "ancient", "northern", "quiet", "narrow", "window",
)
# fmt: on


def _text(seed: int, sentences: int = 12) -> str:
    """English-looking prose that is different for each seed."""
    words = random.Random(seed)
    lines = [" ".join(words.choices(_WORDS, k=12)) for _ in range(sentences)]
    return "\n".join(f"The {line}." for line in lines)


def _write(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def _run(settings: CleanSettings) -> dict[str, dict[str, Any]]:
    """All stages, here and in this process; the kept documents, by id."""
    files = plan.find_files(settings)
    plan.begin(settings, files)
    for stage in stages.stages(settings, plan.input_bytes(files)):
        for task in range(stage.tasks):
            data = None
            for step in stage.pipeline:
                data = step(data, task, stage.tasks)
            assert list(data) == []
    return {row.pop("id"): row for row in _rows(settings, "documents")}


def _shares(settings: CleanSettings) -> list[list[plan.InputShare]]:
    plan.begin(settings, plan.find_files(settings))
    return [plan.read_shares(settings, task) for task in range(settings.tasks)]


def _rows(settings: CleanSettings, folder: str) -> list[dict[str, Any]]:
    files = sorted(settings.folder(folder).glob("*.jsonl.zst"))
    return [
        {"id": document.id, "text": document.text, **document.metadata}
        for file in files
        for document in read_documents(file)
    ]


def _settings(tmp_path: Path, **settings: Any) -> CleanSettings:
    inputs = (CleaningInput("here", str(tmp_path / "in")),)
    out = str(tmp_path / "out")
    return CleanSettings(**{"inputs": inputs, "out": out, "filters": False} | settings)


def test_documents_keep_their_labels_and_get_those_they_lack(tmp_path: Path) -> None:
    _write(
        tmp_path / "in/a.jsonl",
        [
            {"id": "bare", "text": _text(0)},
            {"id": "own", "text": _text(1), "source": "mine", "language": "en", "quality": 0.25},
            {"id": 7, "text": _text(2), "metadata": {"domain": "books", "education": 1.0}},
        ],
    )
    kept = _run(_settings(tmp_path))
    assert kept["bare"]["source"] == "here"
    assert kept["bare"]["language"] == "eng_Latn"
    assert 0 <= kept["bare"]["quality"] <= 1 and 0 <= kept["bare"]["education"] <= 1
    assert kept["own"]["source"] == "mine" and kept["own"]["language"] == "eng_Latn"
    assert kept["own"]["quality"] == 0.25
    assert kept["7"]["domain"] == "books" and kept["7"]["education"] == 1.0
    assert all(Path(row["file"]).name == "a.jsonl" for row in kept.values())


@pytest.mark.parametrize(
    ("beside", "within", "given", "found"),
    [
        ({}, None, {}, (None, None, None, None, None)),
        ({}, None, {"source": "flag", "domain": "web"}, ("flag", None, "web", None, None)),
        ({"source": "own"}, {"source": "in"}, {"source": "flag"}, ("own", None, None, None, None)),
        ({}, {"source": "in"}, {"source": "flag"}, ("in", None, None, None, None)),
        ({"source": ""}, {"source": "in", "language": ""}, {"language": "eng_Latn"},
         ("in", "eng_Latn", None, None, None)),
        ({"domain": ""}, {"domain": ""}, {"domain": "web"}, (None, None, "web", None, None)),
        ({"quality": 0.0}, {"quality": 1.0, "education": 0.0}, {}, (None, None, None, 0.0, 0.0)),
    ],
)  # fmt: skip
def test_a_field_goes_before_metadata_and_both_before_what_is_given_for_others(
    tmp_path: Path, beside: Any, within: Any, given: Any, found: Any
) -> None:
    path = _write(tmp_path / "in/a.jsonl", [{"text": _text(0), **beside, "metadata": within}])
    part = documents.FilePart(str(path), 0, path.stat().st_size)
    ((document,),) = (batch.documents for batch in documents.read(part, {}))
    assert said(document, **given) == found
    book = LabelBook(given)
    book.number(document)
    levels = [level(share) for share in found[3:]]
    assert book.names == [(*(label or "unknown" for label in found[:3]), *levels)]
    source, language = found[0] or "here", code_of(found[1] or "eng_Latn")
    if "language" not in given and given.get("source") is None:
        inputs = (CleaningInput("here", str(path), given.get("domain")),)
        (row,) = _run(_settings(tmp_path, inputs=inputs)).values()
        assert (row["source"], row["language"], row.get("domain")) == (source, language, found[2])


@pytest.mark.parametrize("tasks", [1, 3, 7])
def test_the_first_of_equal_and_near_documents_is_kept_however_many_tasks_there_are(
    tmp_path: Path, tasks: int
) -> None:
    near = _text(0, 60).replace("The river", "That river", 1)
    rows = [{"id": f"{k}", "text": _text(k, 60)} for k in range(8)]
    _write(tmp_path / "in/a.jsonl", [*rows[:5], {"id": "near", "text": near}])
    equal = {"id": "equal", "text": rows[2]["text"] + "\r\n"}
    _write(tmp_path / "in/b.jsonl.gz", [*rows[5:], equal])
    settings = _settings(tmp_path, tasks=tasks)
    assert list(_run(settings)) == [row["id"] for row in rows]
    dropped = {row["id"]: (row["reason"], row["kept"]) for row in _rows(settings, "duplicates")}
    assert dropped == {"near": ("much like another", "0"), "equal": ("equal to another", "2")}
    assert not settings.folder("work").exists()


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_documents_without_an_id_get_the_same_however_many_tasks_there_are(
    tmp_path: Path, mark: str
) -> None:
    rows = [json.dumps({"text": _text(k)}) for k in range(20)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text(mark + "\n".join(rows), encoding="utf-8")
    ids = [
        list(_run(_settings(tmp_path, tasks=tasks, out=str(tmp_path / f"out{tasks}"))))
        for tasks in (1, 3, 7)
    ]
    assert len(ids[0]) == 20
    assert ids[0] == ids[1] == ids[2]


def test_near_duplicates_are_kept_where_only_equal_ones_are_to_go(tmp_path: Path) -> None:
    texts = [_text(0, 60), _text(0, 60) + " And more.", _text(0, 60)]
    _write(tmp_path / "in/a.jsonl", [{"id": str(k), "text": text} for k, text in enumerate(texts)])
    assert list(_run(_settings(tmp_path, similarity=1.01))) == ["0", "1"]


def test_texts_of_signs_alone_are_duplicates_only_where_they_are_equal(tmp_path: Path) -> None:
    texts = ["!!! ??? ...", "<<< >>>", "!!! ??? ...", "~~~"]
    _write(tmp_path / "in/a.jsonl", [{"id": str(k), "text": text} for k, text in enumerate(texts)])
    assert list(_run(_settings(tmp_path, undetermined=True))) == ["0", "1", "3"]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60), st.integers(1, 9))
def test_groups_are_the_connected_components(edges: list[tuple[int, int]], files: int) -> None:
    parent = {node: node for edge in edges for node in edge}
    for _ in parent:
        for a, b in edges:
            parent[a] = parent[b] = min(parent[a], parent[b])
    links = np.array_split(np.array(edges, np.int64).reshape(-1, 2), files)
    found = {later: first for first, later in Forest(lambda: links).links().tolist()}
    assert found == {node: first for node, first in parent.items() if node != first}


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled", "outwards"])
def test_long_chains_are_joined_in_few_looks_at_each_document(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Counter[str]()

    def counted(parent: Any, nodes: Any) -> Any:
        looks["at"] += len(nodes)
        return above(parent, nodes)

    above = groups.above
    monkeypatch.setattr(groups, "above", counted)
    monkeypatch.setattr(groups, "_AT_ONCE", 256)
    count = 1 << 14
    chain = np.stack([np.arange(count - 1), np.arange(1, count)], axis=1)
    places = {
        "ascending": np.arange(count - 1),
        "descending": np.arange(count - 1)[::-1],
        "shuffled": np.random.default_rng(1).permutation(count - 1),
        "outwards": np.argsort(np.abs(np.arange(count - 1) - count // 2), kind="stable"),
    }
    links = chain[places[order]]
    assert (Forest.of(links).links()[:, 0] == 0).all()
    assert looks["at"] < 64 * count  # a look at each for each document would be 16,384


def test_bad_input_is_reported_by_file_and_line_and_the_rest_is_kept(tmp_path: Path) -> None:
    good = [json.dumps({"id": f"g{k}", "text": _text(k)}).encode() for k in range(6)]
    bad = [b'{"text": "bro', b'{"text": "\xff"}', good[1], b'{"id": 1}', b'{"text": ""}', b""]
    lines = [good[0], *bad]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(b"\n".join([*lines, good[2], good[3]]) + b"\n")
    whole = gzip.compress(b"\n".join(good[4:] + [b"{}"] * 50000))
    (tmp_path / "in/b.jsonl.gz").write_bytes(whole[:-20])
    (tmp_path / "in/c.parquet").write_bytes(b"no parquet")
    (tmp_path / "in/d.txt").write_bytes(b"one line\nand \xff")
    (tmp_path / "in/e.txt").write_bytes(b"")
    settings = _settings(tmp_path, tasks=4)
    assert set(_run(settings)) >= {"g0", "g1", "g2", "g3", "g4", "g5"}
    problems = [
        (Path(row["file"]).name, row["line"], row["kind"])
        for row in map(json.loads, settings.folder("problems.jsonl").read_bytes().splitlines())
        if row["detail"] != "Object missing required field `text`" or row["line"] < 9
    ]
    assert problems[:4] == [
        ("a.jsonl", 2, "broken JSON"),
        ("a.jsonl", 3, "invalid UTF-8"),
        ("a.jsonl", 5, "missing or wrong field"),
        ("a.jsonl", 6, "empty document"),
    ]
    kinds = {(name, kind) for name, _, kind in problems}
    assert kinds >= {("b.jsonl.gz", "damaged file"), ("c.parquet", "damaged file")}
    assert ("d.txt", 2, "invalid UTF-8") in problems
    assert ("e.txt", 1, "empty document") in problems


def test_the_first_problem_stops_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text(json.dumps({"text": _text(0)}) + "\nbroken\n")
    with pytest.raises(ConfigError, match=r"a.jsonl, line 2: broken JSON"):
        _run(_settings(tmp_path, on_error="stop"))
    assert not list((tmp_path / "out").rglob("*.zst*"))


def test_parquet_text_and_source_code_are_read(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "in/deep").mkdir(parents=True)
    table = pyarrow.table({"text": [_text(0), _text(1)], "language": ["eng_Latn", None]})
    parquet.write_table(table, tmp_path / "in/a.parquet")
    (tmp_path / "in/deep/b.txt").write_text(_text(2))
    (tmp_path / "in/deep/c.py").write_text(Path(__file__).read_text(encoding="utf-8"))
    (tmp_path / "in/picture.png").write_bytes(b"\x89PNG")
    kept = _run(_settings(tmp_path))
    assert [Path(name).name for name in kept] == ["a.parquet:0", "a.parquet:1", "b.txt", "c.py"]
    code = next(row for name, row in kept.items() if name.endswith("c.py"))
    assert code["domain"] == "code" and code["language"] == "und"


def test_languages_not_asked_for_are_dropped_and_counted(tmp_path: Path) -> None:
    german = "Der Fluss entspringt in den Bergen und fließt langsam ins Meer. " * 3
    rows = [_text(0), german, _ESPERANTO]
    _write(tmp_path / "in/a.jsonl", [{"id": str(k), "text": text} for k, text in enumerate(rows)])
    settings = _settings(tmp_path, languages=("deu_Latn",))
    assert list(_run(settings)) == ["1"]
    outcomes = Counter(row["reason"] for row in _rows(settings, "dropped"))
    assert outcomes == {"language not asked for": 1, "language unknown": 1}


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_documents_with_passages_of_evaluation_sets_are_dropped_and_the_items_named(
    tmp_path: Path, with_tokenizer: bool
) -> None:
    from data_prep import tokenizer

    question = "How many storks came to the lower meadows in June, when snow had melted so late?"
    chinese = "如果雪融化得晚，下游的草地到六月还泡在水里，许多白鹳会飞来觅食，这时农民不去割草。"
    rows = [{"q": {"text": question}, "n": 3}, {"q": "short one"}, {"q": chinese}]
    items = _write(tmp_path / "eval.jsonl", rows)
    quoted = question if with_tokenizer else question.upper().replace(" ", "  ").replace(",", " -")
    texts = [_text(0), f"{_text(1)} {quoted} {_text(2)}", f"{_text(3)}\n{chinese}"]
    texts.append(f"{_text(4)} short one")
    _write(tmp_path / "in/a.jsonl", [{"id": str(k), "text": text} for k, text in enumerate(texts)])
    if with_tokenizer:
        tokenizer.train([_text(k) for k in range(9)], 300, tmp_path / "tokenizer")
    folder = str(tmp_path / "tokenizer") if with_tokenizer else ""
    settings = _settings(tmp_path, decontaminate_against=(str(items),), tokenizer=folder)
    assert list(_run(settings)) == ["0", "3"]
    hits = [json.loads(line) for line in settings.folder("contamination.jsonl").open()]
    assert [(hit["document"], hit["item"].rpartition("/")[2]) for hit in hits] == [
        ("1", "eval.jsonl:1"),
        ("2", "eval.jsonl:3"),
    ]
    assert all(hit["passages"] >= 1 for hit in hits)


def test_a_damaged_evaluation_set_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "in/a.jsonl", [{"text": _text(0)}])
    for name, content in (
        ("a.jsonl", b'{"q": 1}\nbroken\n'),
        ("b.txt", b"\xff"),
        ("c.parquet", b"x"),
    ):
        (tmp_path / name).write_bytes(content)
        settings = _settings(
            tmp_path, decontaminate_against=(str(tmp_path / name),), out=str(tmp_path / "o" / name)
        )
        with pytest.raises(ConfigError, match=rf"evaluation set .*{name}, line [12]: "):
            _run(settings)


def test_shares_cover_every_byte_once_in_order(tmp_path: Path) -> None:
    files = {"a.jsonl": 1000, "b.jsonl.gz": 5000, "c.jsonl": 10, "d.txt": 700}
    (tmp_path / "in").mkdir()
    for name, size in files.items():
        (tmp_path / "in" / name).write_bytes(b"x" * size)
    for tasks in range(1, 12):
        settings = _settings(tmp_path, tasks=tasks, out=str(tmp_path / f"out{tasks}"))
        shares = [share for task in _shares(settings) for share in task]
        for name, size in (
            ("a.jsonl", 1000),
            ("b.jsonl.gz", 5000),
            ("c.jsonl", 10),
            ("d.txt", 700),
        ):
            parts = [share.part for share in shares if Path(share.part.path).name == name]
            ends = [part.start for part in parts[1:]] + [size]
            assert [part.end for part in parts] == ends and parts[0].start == 0
            assert len(parts) == 1 or name.endswith("l")
        assert [share.part.path for share in shares] == sorted(share.part.path for share in shares)


def test_many_files_are_shared_out_among_many_tasks_in_one_pass(tmp_path: Path) -> None:
    """In each task a look at each file would be 40 million, and minutes."""
    files = [plan.InputFile(0, f"in/{k:06d}.jsonl", 1000 + k % 7, 0) for k in range(20_000)]
    settings = _settings(tmp_path, tasks=2000)
    plan.begin(settings, files)
    shares = [plan.read_shares(settings, task) for task in range(0, 2000, 400)]
    sizes = [sum(share.part.end - share.part.start for share in task) for task in shares]
    each = sum(file.size for file in files) / 2000
    assert all(abs(size - each) <= 1 for size in sizes)
    assert shares[0][0] == plan.InputShare(
        settings.inputs[0], plan.FilePart("in/000000.jsonl", 0, 1000)
    )


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError), new_documents(tmp_path / "a.jsonl.zst"):
        raise OSError("no space left")
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file_of_documents_do_not_mix(tmp_path: Path) -> None:
    """As where a job that was taken for dead goes on beside the one that took its place."""
    path = tmp_path / "a.jsonl.zst"
    with new_documents(path) as one:
        one.write(Document(text="a" * 1_500_000, id="1"))
        with new_documents(path) as other:
            other.write(Document(text="b" * 3_000_000, id="2"))
        assert [document.id for document in read_documents(path)] == ["2"]
    assert [document.id for document in read_documents(path)] == ["1"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"languages": ("xyz",)}, "'xyz' is none of the 119"),
        ({"tasks": 0}, "tasks = 0"),
        ({"inputs": (CleaningInput("s" * 51, "."),)}, "the label 'sss.*s' has over 50 characters"),
        ({"similarity": 0.2}, "similarity = 0.2"),
        (
            {"decontaminate_against": ("nowhere.jsonl",)},
            "evaluation set nowhere.jsonl does not exist",
        ),
        ({"models": {"safety": "nowhere.bin"}}, "the safety model nowhere.bin"),
        ({"models": {"colour": "nowhere.bin"}}, "'colour' is no label with a model"),
        ({"on_error": "cry"}, "valid: skip, stop"),
        ({"tokenizer": "nowhere"}, "tokenizer nowhere does not exist"),
        ({"inputs": ()}, "no input"),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path: Path, settings: Any, message: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match=message):
        _settings(tmp_path, **settings).validate()


def test_files_of_unknown_kinds_are_refused_or_left_out_of_folders(tmp_path: Path) -> None:
    known = _write(tmp_path / "in/a.jsonl", [{"text": _text(0)}])
    (tmp_path / "in/package.json").write_text('{\n "name": "x"\n}')
    (tmp_path / "in/a.jsonl.bz2").write_bytes(b"BZh9")
    (tmp_path / "empty").mkdir()
    (shares,) = _shares(_settings(tmp_path))
    assert [share.part.path for share in shares] == [str(known)]
    for name in ("in/a.jsonl.bz2", "empty"):
        inputs = (CleaningInput("here", str(known)), CleaningInput("there", str(tmp_path / name)))
        with pytest.raises(ConfigError, match=f"{name} is or holds no file ending in one of"):
            plan.find_files(_settings(tmp_path, inputs=inputs))


def test_a_result_within_its_own_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    out = str(tmp_path / "in/clean")
    with pytest.raises(ConfigError, match=f"out = {out} lies within the input"):
        _settings(tmp_path, out=out).validate()
    _settings(tmp_path, out=str(tmp_path / "in-clean")).validate()


@pytest.mark.parametrize("documents", ["{out}", "{out}/kept/x", "{out}/in/../dropped", "{link}/x"])
def test_a_result_within_the_folder_of_its_cleaning_is_refused(
    tmp_path: Path, documents: str
) -> None:
    (tmp_path / "in").mkdir()
    out, link = tmp_path / "out", tmp_path / "link"
    link.symlink_to(out)
    place = documents.format(out=out, link=link)
    for spelt in (place, f"file://{place}"):
        with pytest.raises(ConfigError, match="lies within out = .*out, which keeps files of its"):
            _settings(tmp_path, documents=spelt).validate()
    for place in (f"{out}/documents", str(tmp_path / "out-documents"), "memory://out/x"):
        _settings(tmp_path, documents=place).validate()


def test_folders_of_a_cleaning_that_lie_within_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out/in").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "out/in")
    for place in ("out/in", "link", "link/../in"):
        inputs = (CleaningInput("here", str(tmp_path / place)),)
        with pytest.raises(ConfigError, match=f"the input .*{place} lies within out = .*out; take"):
            _settings(tmp_path, inputs=inputs).validate()
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match="out = .* lies within documents = .*, which takes the"):
        _settings(tmp_path, documents=str(tmp_path)).validate()
    with pytest.raises(ConfigError, match="documents = .* lies within the input"):
        _settings(tmp_path, documents=f"file://{tmp_path}/in/x").validate()


def test_a_folder_of_another_cleaning_is_left_alone(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    settings.claim({})
    settings.claim({})
    with pytest.raises(ConfigError, match=r"other settings \(tasks was 1, is 5\)"):
        _settings(tmp_path, tasks=5).claim({})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("kept")
    with pytest.raises(ConfigError, match="is not empty"):
        _settings(tmp_path, out=str(tmp_path / "mine")).claim({})


def test_a_cleaning_does_not_go_on_with_other_files_than_it_began_with(tmp_path: Path) -> None:
    _write(tmp_path / "in/a.jsonl", [{"id": str(k), "text": _text(k)} for k in range(4)])
    items = _write(tmp_path / "items.jsonl", [{"question": _text(7)}])
    settings = _settings(tmp_path, decontaminate_against=(str(items),))
    plan.begin(settings, plan.find_files(settings))
    plan.begin(settings, plan.find_files(settings))
    _write(tmp_path / "in/b.jsonl", [{"id": "4", "text": _text(4)}])
    with pytest.raises(ConfigError, match=r"inputs have changed \(.*b\.jsonl\)"):
        plan.begin(settings, plan.find_files(settings))
    (tmp_path / "in/b.jsonl").unlink()
    plan.begin(settings, plan.find_files(settings))
    _write(items, [{"question": _text(7) + _text(8)}])
    with pytest.raises(ConfigError, match=r"inputs have changed \(.*items\.jsonl\)"):
        plan.begin(settings, plan.find_files(settings))


def test_sources_without_number_are_counted_together(tmp_path: Path) -> None:
    tally = Tally()
    for k in range(2 * MOST_ROWS):
        labels = {"source": f"s{k}", "language": f"l{k}"}
        tally.add(Document("ü", "id", metadata=labels), ("kept", "too short")[k % 2])
    tally.write(tmp_path / "counts.json")
    rows = json.loads((tmp_path / "counts.json").read_text())
    assert len(rows) == MOST_ROWS + 2
    assert ["(others)", "und", "kept", MOST_ROWS // 2, MOST_ROWS] in rows
    assert sum(row[3] for row in rows) == 2 * MOST_ROWS


def test_the_report_names_outcomes_languages_and_problems(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lines = [json.dumps({"text": _text(k)}) for k in (0, 1, 1)]
    (tmp_path / "in/a.jsonl").write_text("\n".join([*lines, "broken", json.dumps({"text": "Hi."})]))
    settings = _settings(tmp_path, filters=True)
    _run(settings)
    console = Console(file=io.StringIO(), width=120)
    report.print_report(report.read_report(Path(settings.out)), console)
    text = console.file.getvalue()
    shown = ("equal to another", "English", "1 broken JSON", "of 4 documents kept")
    shown += ("quality and education: heuristics",)
    for words in (*shown, "language unknown"):
        assert words in text
    content = json.loads(settings.folder("report.json").read_bytes())
    assert content["scores"] == {"quality": "heuristic", "education": "heuristic"}
    assert "min_letters = 240.0" in content["recipe"]
    assert settings.folder("report.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="has not ended"):
        report.read_report(tmp_path / "in")
