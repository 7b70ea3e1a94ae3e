"""Fields of documents besides text and labels stay with them, whatever their values."""

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.documents import FilePart, read
from data_prep.inventory import read_inventory
from data_prep.kept_fields import ALL, LARGEST_BYTES, NONE, KeptFields, note
from data_prep.noted import parted
from data_prep.shards import origin
from data_prep.tokenization.corpus import CorpusOptions, tokenize
from data_prep.tokenization.plan import Settings
from megatron_qwen3.cli import inspect_shards, tokenize_corpus
from megatron_qwen3.config import ConfigError
from tests.corpora import WORDS

LARGE = 2 * LARGEST_BYTES

pytestmark = pytest.mark.usefixtures("small_units")


def fields_of(path: Path, keep: tuple[str, ...] = (ALL,), **names: str) -> list[dict[str, Any]]:
    part = FilePart(str(path), 0, path.stat().st_size)
    return [fields for batch in read(part, names, keep) for fields in batch.fields]


def lines(tmp_path: Path, *rows: str | bytes) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(r if isinstance(r, bytes) else r.encode() for r in rows))
    return path


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ('{"text": "a", "url": "https://a.b/ü?x=\\u00e9\\"\\\\"}', {"url": 'https://a.b/ü?x=é"\\'}),
        ('{"text": "a", "n": 7, "f": 0.5, "b": false}', {"n": 7, "f": 0.5, "b": False}),
        ('{"text": "a", "o": {"x": 1}, "l": [1], "z": null, "e": ""}', {}),
        ('{"text": "a", "f": NaN, "url": "u"}', {"url": "u"}),
        ('{"text": "a", "url": "\\ud800x"}', {"url": "\\ud800x"}),
        ('{"text": "a", "n": 123456789012345678901234}', {"n": "123456789012345678901234"}),
        ('{"text": "a", "metadata": {"url": "in", "date": "2024", "language": "de"}}',
         {"url": "in", "date": "2024"}),
        ('{"text": "a", "url": "out", "metadata": {"url": "in"}}', {"url": "out"}),
        ('{"text": "a", "url": null, "metadata": {"url": "in"}}', {"url": "in"}),
        ('{"text": "a", "source": "s", "quality": 0.5, "id": 3, "metadata": 7}', {}),
        ('{"text": "a", "\\ud800": 1, "": 2}', {"\\ud800": 1, "": 2}),
        (b'{"text": "a", "raw": "\xff\xfe", "url": "u"}', {"url": "u"}),
        ('{"text": "a", "deep": ' + "[" * 990 + "]" * 990 + ', "url": "u"}', {"url": "u"}),
    ],
)  # fmt: skip
def test_single_values_stay_and_nothing_else_does(
    tmp_path: Path, line: str | bytes, kept: dict[str, Any]
) -> None:
    found = fields_of(lines(tmp_path, line, '{"text": "b", "url": "next"}'))
    raw = found[0].pop("raw", "")  # of invalid bytes whatever is legible
    assert found == [kept, {"url": "next"}] and "\udcff" not in raw


def test_fields_that_are_too_large_are_left_out_and_url_date_and_licence_come_first(
    tmp_path: Path,
) -> None:
    row = {"text": "a", "html": "x" * LARGE, "rest": "y" * (LARGEST_BYTES - 60), "n": 1}
    row |= {"url": "u" * 30, "licence": "CC0"}
    path = lines(tmp_path, json.dumps(row), json.dumps({"text": "b", "html": "z" * 50 * LARGE}))
    (batch,) = read(FilePart(str(path), 0, path.stat().st_size), {}, (ALL,))
    assert [set(fields) for fields in batch.fields] == [{"n", "url", "licence"}, set()]
    assert batch.left_out == 3 and len(batch.documents) == 2 and not batch.problems


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(row=st.dictionaries(st.text(), JSON, max_size=8), name=st.text(st.characters(codec="utf-8")))
def test_any_object_gives_fields_that_fit_and_come_back_from_a_note(
    row: dict[str, Any], name: str
) -> None:
    kept = KeptFields((ALL,), {})
    from_line = kept.of_line(json.dumps(row).encode(), json.loads)
    assert from_line == kept.of_row(json.loads(json.dumps(row)))
    assert len(msgspec.json.encode(from_line)) <= LARGEST_BYTES
    assert parted(note(name, from_line)) == (name, from_line)


def test_named_fields_alone_or_none_are_kept(tmp_path: Path) -> None:
    path = lines(tmp_path, '{"text": "a", "url": "u", "date": "d", "metadata": {"n": 1}}')
    assert fields_of(path, ("url", "n")) == [{"url": "u", "n": 1}]
    assert fields_of(path, (NONE,)) == []
    path = lines(tmp_path, '{"content": "a", "lang": "de", "text": "t", "language": "x"}')
    renamed = {"text": "content", "language": "lang"}
    assert fields_of(path, **renamed) == [{"text": "t", "language": "x"}]


@pytest.mark.parametrize("keep", [(), ("all", "url"), ("none", "none")])
def test_a_choice_that_is_none_is_refused(tmp_path: Path, keep: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="keep-fields: .*; valid: all, none, or names"):
        tokenize([tmp_path], tmp_path / "out", Settings("none", keep_fields=keep), CorpusOptions())


def test_columns_of_parquet_are_kept_and_their_long_texts_cost_nothing(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    day = datetime.datetime(2024, 2, 29, 12)
    metadata = [{"url": "in", "n": 2}, {"url": "z" * (1 << 17), "n": None}, None]
    table = pa.table(
        {
            "text": ["a", "b", "c"],
            "url": ["u", None, "x" * (1 << 17)],
            "date": [day, None, None],
            "links": [["l"], [], None],
            "raw": [b"\xff", b"bytes", None],
            "metadata": metadata,
        }
    )
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path)
    assert fields_of(path) == [
        {"url": "u", "n": 2, "date": "2024-02-29T12:00:00"},
        {"raw": "bytes"},
        {},
    ]
    assert fields_of(path, ("n",)) == [{"n": 2}, {}, {}]


def corpus(folder: Path, count: int = 60) -> Path:
    folder.mkdir(parents=True)
    rows = [
        {
            "id": f"d{k}",
            "text": " ".join(WORDS[(k * j) % len(WORDS)] for j in range(1, 3 + k)),
            "url": f"https://a.b/{k}",
            "metadata": {"date": f"2024-01-{k % 28 + 1:02}"},
        }
        for k in range(count)
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("pack", [0, 32])
def test_the_shards_know_the_fields_of_each_document(
    tmp_path: Path, tokenizer: str, pack: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    settings = Settings(tokenizer, shard_tokens=400, group_bytes=5_000, pack=pack)
    tokenize([corpus(tmp_path / "in")], out, settings, CorpusOptions())
    seen = set()
    for shard in read_inventory(out).cells:
        for n in range(shard.in_files):
            place = origin(out / shard.path, shard.first + n)
            if place.line:
                k = place.id.removeprefix("d")
                date = f"2024-01-{int(k) % 28 + 1:02}"
                assert place.fields == {"url": f"https://a.b/{k}", "date": date}
                seen.add(k)
    assert len(seen) == 60
    prefix = str(out / read_inventory(out).cells[0].path)
    assert inspect_shards.main(["show", prefix, "0"]) == 0
    assert "\nurl: https://a.b/" in capsys.readouterr().out


def test_a_tokenization_that_began_when_nothing_was_kept_goes_on_so(
    tmp_path: Path, tokenizer: str
) -> None:
    out, folder = tmp_path / "out", corpus(tmp_path / "in")
    arguments = [str(folder), "--out", str(out), "--tokenizer", tokenizer, "--workers", "1"]
    assert tokenize_corpus.main([*arguments, "--keep-fields", "none"]) == 0
    plan = json.loads((out / "plan.json").read_text())
    del plan["settings"]["keep_fields"]  # as it was before there was a choice
    (out / "plan.json").write_text(json.dumps(plan))
    shutil.rmtree(out / "groups")
    assert tokenize_corpus.main(arguments) == 0
    shard = read_inventory(out).cells[0]
    assert origin(out / shard.path, 0).fields == {}


def test_cleaning_passes_them_on_beside_its_own(tmp_path: Path, tokenizer: str) -> None:
    pytest.importorskip("datatrove")
    from data_prep.clean import plan, stages
    from data_prep.clean.settings import CleaningInput, CleanSettings

    text = "The farmer of the old village walks along the quiet river. " * 20
    row = {"text": text, "id": 1, "url": "https://a.b/1", "file": "dump-7.warc", "_x": 1, "": "e"}
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text(json.dumps(row) + "\n")
    settings = CleanSettings(
        (CleaningInput("web", str(tmp_path / "in")),), str(tmp_path / "clean"), filters=False
    )
    files = plan.find_files(settings)
    plan.begin(settings, files)
    for stage in stages.stages(settings, plan.input_bytes(files)):
        for task in range(stage.tasks):
            data = None
            for step in stage.pipeline:
                data = step(data, task, stage.tasks)
            assert list(data) == []
    out = tmp_path / "tokens"
    tokenize([tmp_path / "clean/documents"], out, Settings(tokenizer), CorpusOptions())
    found = origin(out / read_inventory(out).cells[0].path, 0)
    assert found.id == "1" and found.fields["url"] == "https://a.b/1"
    assert found.fields["input_file"] == "dump-7.warc" and found.fields["input__x"] == 1
    assert found.fields["file"] == str(tmp_path / "in/a.jsonl") and found.fields[""] == "e"
