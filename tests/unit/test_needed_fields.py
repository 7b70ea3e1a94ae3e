"""A field that is not needed never matters, and a fault costs its record alone."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep.documents import Document, FilePart, Problem, read

DEEP = b"[" * 990 + b"]" * 990
ABYSS = b'[{"a":' * 100_000 + b"1" + b"}]" * 100_000


def found(path: Path, **names: str) -> tuple[list[Document], list[Problem]]:
    batches = list(read(FilePart(str(path), 0, path.stat().st_size), names))
    return [d for b in batches for d in b.documents], [p for b in batches for p in b.problems]


def of_line(tmp_path: Path, line: bytes) -> tuple[list[Document], list[Problem]]:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    documents, problems = found(path)
    assert [documents[0].text, documents[-1].text] == ["before", "after"]
    assert all(problem.line == 2 for problem in problems)
    return documents[1:-1], problems


@pytest.mark.parametrize(
    "value",
    [
        DEEP,
        ABYSS,
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 5000,
        b'"\\ud800"',
        b'"\xff"',
        b'{"source": NaN, "x": "\\udfff", "y": ' + DEEP + b"}",
        b'["[", "}"]',
    ],
)
@pytest.mark.parametrize("field", [b"other", b"metadata"])
def test_a_document_is_taken_whatever_stands_in_a_field_beside_it(
    tmp_path: Path, field: bytes, value: bytes
) -> None:
    line = b'{"text": "t", "%b": %b, "language": "deu_Latn"}' % (field, value)
    (document,), problems = of_line(tmp_path, line)
    assert (document.text, document.language, problems) == ("t", "deu_Latn", [])


@pytest.mark.parametrize("metadata", ['"text"', "[1, 2]", "3", "true", '["a", "b"]'])
def test_metadata_that_is_no_object_has_no_labels(tmp_path: Path, metadata: str) -> None:
    line = f'{{"text": "t", "metadata": {metadata}, "source": "s"}}'
    (document,), problems = of_line(tmp_path, line.encode())
    assert (document.text, document.source, document.metadata, problems) == ("t", "s", None, [])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("1.5", "1.5"),
        ("true", "true"),
        ('{"$oid": "ä1"}', '{"$oid": "ä1"}'),
        ("[1, null]", "[1, null]"),
        ("null", None),
        ("12", 12),
        ('"a\\ud800"', "a\\ud800"),
        ("1" * 5000, "1" * 5000),
    ],
)
def test_an_id_of_any_kind_keeps_its_text(tmp_path: Path, given: str, kept: Any) -> None:
    (document,), problems = of_line(tmp_path, f'{{"text": "t", "id": {given}}}'.encode())
    assert (document.text, document.id, problems) == ("t", kept, [])


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"text": "t", "x": ' + b"[" * 100_000, "broken JSON"),
        (b'{"text": ' + DEEP + b"}", "missing or wrong field"),
        (ABYSS, "missing or wrong field"),
        (b'{"text": "\\ud800", "metadata": ""}', "broken JSON"),
        (b'{"text": "\xff", "metadata": ""}', "invalid UTF-8"),
        (b'{"text": "t", "source": ["a"]}', "missing or wrong field"),
        (b'{"text": "t", "metadata": {"quality": 7}}', "missing or wrong field"),
        (b"NaN", "missing or wrong field"),
    ],
)
def test_a_fault_in_a_needed_field_is_one_of_its_line(
    tmp_path: Path, line: bytes, kind: str
) -> None:
    documents, problems = of_line(tmp_path, line)
    assert (documents, [problem.kind for problem in problems]) == ([], [kind])


def test_a_missing_field_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    _, (problem,) = of_line(tmp_path, b'{"content": "t", "url": "u"}')
    assert problem.detail == "no field `text`; there are: content, url"


@pytest.fixture
def table(tmp_path: Path) -> Any:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(columns: dict[str, Any], **options: Any) -> Path:
        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table(columns), path, **options)
        return path

    return write


def test_an_odd_timestamp_in_parquet_costs_nothing(table: Any) -> None:
    import pyarrow

    odd = pyarrow.array([10**12] * 600, pyarrow.timestamp("s"))  # the year 33658
    metadata = pyarrow.StructArray.from_arrays(
        [odd, pyarrow.array(["web"] * 600)], names=["date", "source"]
    )
    path = table({"text": [f"t{k}" for k in range(600)], "metadata": metadata, "date": odd})
    documents, problems = found(path)
    assert (len(documents), problems) == (600, [])
    assert {document.metadata.source for document in documents} == {"web"}


def test_an_odd_timestamp_as_a_label_is_a_fault_of_its_row(table: Any) -> None:
    import pyarrow

    odd = pyarrow.array([None] * 400 + [10**12] + [None] * 199, pyarrow.timestamp("s"))
    documents, problems = found(table({"text": ["t"] * 600, "source": odd}))
    assert (len(documents), [problem.line for problem in problems]) == (599, [401])
    documents, problems = found(table({"text": ["t"] * 600, "id": odd}))
    assert (len(documents), problems) == (600, [])


@pytest.mark.parametrize("kind", ["text", "list", "map", "dates"])
def test_metadata_of_parquet_may_be_of_any_type(table: Any, kind: str) -> None:
    import pyarrow

    text, date = pyarrow.string(), pyarrow.timestamp("s")
    rows, type_ = {
        "text": ("x", text),
        "list": (["x"], pyarrow.list_(text)),
        "map": (
            [("source", "web"), ("quality", "0.5"), ("education", "")],
            pyarrow.map_(text, text),
        ),
        "dates": ([("source", 10**12)], pyarrow.map_(text, date)),
    }[kind]
    path = table({"text": ["t"] * 3, "metadata": pyarrow.array([rows, rows, None], type_)})
    documents, problems = found(path)
    assert (len(documents), problems) == (3, [])
    if kind == "map":
        labels = documents[0].metadata
        assert (labels.source, labels.quality, labels.education) == ("web", 0.5, None)


def test_ids_and_texts_of_parquet_may_be_of_any_type(table: Any) -> None:
    path = table({"text": [b"t\xc3\xa4", b"\xff"], "id": [{"a": 1}, None]})
    (document,), (problem,) = found(path)
    assert (document.text, document.id) == ("tä", '{"a": 1}')
    assert (problem.line, problem.kind) == (2, "invalid UTF-8")


def test_parquet_without_the_column_of_texts_names_those_it_has(table: Any) -> None:
    documents, (problem,) = found(table({"content": ["t"], "url": ["u"]}))
    assert documents == []
    assert problem.detail == "no field `text`; there are: content, url"
    (document,), _ = found(table({"content": ["t"], "url": ["u"]}), text="content")
    assert document.text == "t"


@pytest.mark.parametrize("place", ["text", "id", "metadata", "map"])
def test_parquet_that_expands_a_thousandfold_takes_little_memory(table: Any, place: str) -> None:
    import pyarrow

    rows, long = 60, "a" * 4_000_000
    columns: dict[str, Any] = {"text": ["t"] * rows, place: [long] * rows}
    if place == "metadata":
        columns[place] = [{"source": long}] * rows
    if place == "map":
        kind = pyarrow.map_(pyarrow.string(), pyarrow.string())
        del columns[place]
        columns["metadata"] = pyarrow.array([[("source", long)]] * rows, kind)
    size = {"dictionary_pagesize_limit": 1 << 30, "write_statistics": False}
    path = table(columns, compression="zstd", **size)
    assert path.stat().st_size < 50_000
    code = (
        "import os, resource, sys, pyarrow.parquet\nfrom data_prep.documents import *\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\nbefore = peak()\n"
        "part, rows = FilePart(sys.argv[1], 0, os.path.getsize(sys.argv[1])), 0\n"
        "for batch in read(part, {}): rows += batch.num_lines\nprint(rows, peak() - before)"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    read_rows, megabytes = map(int, done.stdout.split())
    assert read_rows == rows
    assert megabytes < 120  # 240 MB of text


def test_parquet_with_a_name_that_is_no_utf8_is_read(table: Any, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff.parquet")
    table({"text": ["t"], "metadata": [{"source": "web"}]}).rename(odd)
    (document,), problems = found(odd)
    assert (document.text, document.metadata.source, problems) == ("t", "web", [])


def test_a_row_of_parquet_is_as_long_as_a_line_may_be(
    table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.documents.LONGEST_LINE_BYTES", 5000)
    monkeypatch.setattr("data_prep.parquet.BATCH_BYTES", 2000)
    documents, problems = found(table({"text": ["a", "b" * 6000, "c" * 4000, "d"]}))
    assert [document.text[0] for document in documents] == ["a", "c", "d"]
    assert [(problem.line, problem.kind) for problem in problems] == [(2, "line too long")]


def test_a_line_of_quotes_that_end_nowhere_costs_no_more_than_text(tmp_path: Path) -> None:
    began = time.process_time()
    documents, (problem,) = of_line(tmp_path, b'\\"' * 15_000)
    assert (documents, problem.kind) == ([], "broken JSON")
    assert time.process_time() - began < 1  # its length squared takes ten
