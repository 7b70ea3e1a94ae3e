"""Documents are read from every kind of file, and a fault of one costs no other."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import documents, lines
from data_prep.damaged import DamagedFile
from data_prep.documents import FilePart, read

ROWS: list[dict[str, Any]] = [
    {"id": "a", "text": "one", "language": "eng_Latn", "quality": 0.5, "url": "http://x"},
    {"id": 7, "text": "zwei\nZeilen", "metadata": {"source": "web", "education": 1, "dump": "x"}},
    {"text": "три \u2028 \u0000 👩🏽\u200d🚀", "domain": None, "quality": None},
]
LINES = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]


def write(path: Path, content: bytes) -> FilePart:
    path.write_bytes(content)
    return FilePart(str(path), 0, len(content))


def compress(suffix: str, content: bytes) -> bytes:
    if not suffix:
        return content
    if suffix == ".gz":
        return gzip.compress(content)
    return pytest.importorskip("zstandard").ZstdCompressor().compress(content)


def taken(part: FilePart, **names: str) -> list[tuple[int, str]]:
    batches = list(read(part, names))
    return [(n, d.text) for b in batches for n, d in zip(b.lines, b.documents, strict=True)]


def problems(part: FilePart) -> list[tuple[int, str]]:
    return [(p.line, p.kind) for batch in read(part, {}) for p in batch.problems]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_lines_of_json_are_read_with_their_labels(
    tmp_path: Path, suffix: str, ending: bytes
) -> None:
    content = ending.join(LINES)
    part = write(tmp_path / f"a.jsonl{suffix}", compress(suffix, content) if suffix else content)
    (batch,) = read(part, {})
    assert [d.text for d in batch.documents] == [row["text"] for row in ROWS]
    assert [d.id for d in batch.documents] == ["a", 7, None]
    assert [d.quality for d in batch.documents] == [0.5, None, None]
    assert batch.documents[1].metadata.source == "web"
    assert (batch.lines, batch.num_lines, batch.problems) == ([1, 2, 3], 3, [])


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_members_end_to_end_are_one_file(tmp_path: Path, suffix: str) -> None:
    content = b"".join(compress(suffix, line + b"\n") for line in LINES)
    part = write(tmp_path / f"a.jsonl{suffix}", content)
    assert [text for _, text in taken(part)] == [row["text"] for row in ROWS]


def test_parquet_is_read_row_by_row(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"metadata": None, **row, "id": str(row.get("id")), "number": 1.5} for row in ROWS]
    rows.append({"id": "n", "text": "vier", "quality": float("nan")})
    rows[-1]["metadata"] = {"education": float("nan")}
    rows.append({"id": "e", "text": None})
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    part = FilePart(str(path), 0, path.stat().st_size)
    (batch,) = read(part, {})
    assert [d.text for d in batch.documents] == [*(row["text"] for row in ROWS), "vier"]
    assert [d.quality for d in batch.documents] == [0.5, None, None, None]
    assert batch.documents[1].metadata.education == 1
    assert [(p.line, p.kind) for p in batch.problems] == [(5, "missing or wrong field")]
    path.write_bytes(path.read_bytes()[:-20])
    assert problems(part) == [(1, "damaged file")]


def test_fields_may_have_other_names(tmp_path: Path) -> None:
    part = write(
        tmp_path / "a.jsonl", b'{"content": "x", "lang": "fr", "metadata": {"lang": "de"}}'
    )
    (batch,) = read(part, {"text": "content", "language": "lang"})
    assert batch.documents[0].text == "x"
    assert batch.documents[0].language == "fr"
    assert batch.documents[0].metadata.language == "de"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"text": "a"', "broken JSON"),
        (b'{"text": "\\ud800"}', "broken JSON"),
        (b'{"text": "a"} {"text": "b"}', "broken JSON"),
        (b'{"text": "a\xff"}', "invalid UTF-8"),
        (b'{"text": "a\xed\xa0\x80"}', "invalid UTF-8"),
        (b'{"id": "a"}', "missing or wrong field"),
        (b'{"text": 1}', "missing or wrong field"),
        (b'{"text": null}', "missing or wrong field"),
        (b'{"text": "a", "quality": 1.5}', "missing or wrong field"),
        (b'{"text": "a", "quality": "high"}', "missing or wrong field"),
        (b'{"text": "a", "source": "' + b"x" * 51 + b'"}', "missing or wrong field"),
        (b'["text"]', "missing or wrong field"),
        (b'{"text": ""}', "empty document"),
        (b'{"text": "' + b"x" * 300 + b'"}', "line too long"),
    ],
)
def test_a_bad_line_is_reported_with_its_number_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, kind: str
) -> None:
    monkeypatch.setattr(documents, "LONGEST_LINE_BYTES", 256)
    part = write(tmp_path / "a.jsonl", b"\n".join([LINES[0], line, b"", b"  ", *LINES[1:]]) + b"\n")
    assert problems(part) == [(2, kind)]
    assert [number for number, _ in taken(part)] == [1, 5, 6]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_stream_that_is_cut_short_gives_what_comes_before(tmp_path: Path, suffix: str) -> None:
    rows = [json.dumps({"text": f"{k * 7919**5:x}" * 8}).encode() for k in range(20_000)]
    content = compress(suffix, b"\n".join(rows))
    part = write(tmp_path / f"a.jsonl{suffix}", content[: len(content) // 2])
    found = taken(part)
    assert 1000 < len(found) < 15_000
    assert found == [(k + 1, json.loads(rows[k])["text"]) for k in range(len(found))]
    assert problems(part) == [(len(found) + 1, "damaged file")]


def test_a_stream_that_fails_its_checksum_is_reported(tmp_path: Path) -> None:
    content = bytearray(compress(".gz", b"\n".join(LINES)))
    content[-5] ^= 1
    assert problems(write(tmp_path / "a.jsonl.gz", bytes(content)))[-1][1] == "damaged file"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_what_is_not_compressed_at_all_is_damaged(tmp_path: Path, suffix: str) -> None:
    assert problems(write(tmp_path / f"a.jsonl{suffix}", LINES[0])) == [(1, "damaged file")]
    assert problems(write(tmp_path / f"b.jsonl{suffix}", b"")) == [(1, "damaged file")]


@settings(deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=12), max_size=12),
    cuts=st.lists(st.integers(0, 400), max_size=4),
    ending=st.sampled_from([b"", b"\n"]),
    block=st.integers(1, 64),
)
def test_parts_that_cover_a_file_give_each_document_once(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    cuts: list[int],
    ending: bytes,
    block: int,
) -> None:
    rows = [json.dumps({"text": text + "."}, ensure_ascii=False).encode() for text in texts]
    path = tmp_path_factory.mktemp("parts") / "a.jsonl"
    size = path.write_bytes(b"\n".join(rows) + ending)
    starts = sorted({0, *(cut for cut in cuts if cut < size)})
    parts = [
        FilePart(str(path), start, end)
        for start, end in zip(starts, [*starts[1:], size], strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block)
        found, positions = [], []
        for part in parts:
            before = lines.lines_before(part.path, part.start)
            for batch in read(part, {}):
                where = zip(batch.lines, batch.documents, strict=True)
                found += [(before + line, document.text) for line, document in where]
                positions += batch.positions
    assert found == [(k + 1, text + ".") for k, text in enumerate(texts)]
    assert positions == sorted(set(positions))


@settings(deadline=None)
@given(
    content=st.lists(st.sampled_from([b"a" * 30, b"b", b"\n", b"cc\n"]), max_size=30),
    block=st.integers(1, 16),
)
def test_a_line_that_is_too_long_is_cut_and_the_next_begins_where_it_should(
    content: list[bytes], block: int
) -> None:
    whole = b"".join(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block)
        found = [line for part in lines._lines(iter(content), 40) for line in part]
    expected = whole.split(b"\n")
    expected = expected if expected[-1] else expected[:-1]
    assert [line[:41] for line in found] == [line[:41] for line in expected]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("block", [4, 1 << 22])
def test_a_byte_order_mark_is_no_part_of_the_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, block: int
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    content = compress(suffix, b"\xef\xbb\xbf" + b"\n".join(LINES))
    part = write(tmp_path / f"a.jsonl{suffix}", content)
    assert len(taken(part)) == 3


def test_files_of_linked_folders_are_found_once_and_links_in_a_circle_end(tmp_path: Path) -> None:
    for name in ("in/a.jsonl", "in/b/c.jsonl", "elsewhere/d.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/b/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/gone").symlink_to(tmp_path / "nowhere")
    found = documents.files_within(tmp_path / "in")
    names = [path.relative_to(tmp_path / "in").as_posix() for path in found]
    assert names == ["a.jsonl", "b/c.jsonl", "b/again/d.jsonl"]


@pytest.mark.parametrize("block", [1, 64, 1000])
def test_a_line_that_is_too_long_is_a_problem_wherever_the_file_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    monkeypatch.setattr("data_prep.documents.LONGEST_LINE_BYTES", 50)
    rows = [json.dumps({"text": "a" * size}).encode() for size in (9, 60, 20)]
    path = tmp_path / "a.jsonl"
    size = path.write_bytes(b"\n".join(rows) + b"\n")
    for cut in range(1, size):
        parts = [FilePart(str(path), 0, cut), FilePart(str(path), cut, size)]
        batches = [batch for part in parts for batch in read(part, {})]
        texts = [document.text for batch in batches for document in batch.documents]
        assert texts == ["a" * 9, "a" * 20]
        assert [p.kind for batch in batches for p in batch.problems] == ["line too long"]


def peak_mb(code: str, *arguments: str) -> int:
    """Most memory of a process of its own that runs the code, less that of the imports."""
    measure = (
        "import resource, sys\nfrom data_prep import documents\nfrom data_prep.documents import *\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\nbefore = peak()\n"
        f"{code}\nprint(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", measure, *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


READ_ALL = """
for path in sys.argv[1:]:
    for batch in read(FilePart(path, 0, os.path.getsize(path)), {}):
        pass
"""


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_memory_does_not_follow_what_a_few_bytes_become(tmp_path: Path, suffix: str) -> None:
    row = json.dumps({"text": "a" * 1000}).encode() + b"\n"
    path = tmp_path / f"a.jsonl{suffix}"
    with path.open("wb") as file:
        if suffix == ".gz":
            with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6) as stream:
                stream.write(row * 150_000)
        else:
            zstandard = pytest.importorskip("zstandard")
            with zstandard.ZstdCompressor().stream_writer(file) as stream:
                stream.write(row * 150_000)
    assert path.stat().st_size < 500_000
    assert peak_mb(READ_ALL, str(path)) < 100  # it becomes 152 MB


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("size", [0, 1, 100_000, 700_000])
def test_a_stream_of_any_form_is_read_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, size: int
) -> None:
    """Incompressible, repeated and empty blocks, checksums, unknown sizes, skippable frames."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 18)
    content = random.Random(size).randbytes(size).replace(b"\n", b"") + b"\na" * 9 + b"b" * size
    streams = [compress(suffix, content)]
    if suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        for options in ({"write_checksum": True}, {"write_content_size": False}, {"level": 19}):
            new = zstandard.ZstdCompressor(**options).compressobj()
            streams.append(new.compress(content) + new.flush())
        streams.insert(1, b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345")
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b"".join(streams))
    whole = content * (len(streams) - (suffix == ".zst"))
    found = [line for some, _ in lines.blocks(str(path), 0, 1, 1 << 30) for line in some]
    assert b"\n".join(found) == whole.removesuffix(b"\n")
    for cut in (len(streams[0]) // 2, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(DamagedFile):
            list(lines.blocks(str(path), 0, 1, 1 << 30))


def test_zstd_long_is_read(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    for log in (27, 28, 31):  # what --long=27, 28 and 31 make
        parameters = zstandard.ZstdCompressionParameters(window_log=log, enable_ldm=True)
        new = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        stream = new.compress(b"\n".join(LINES)) + new.flush()
        assert len(taken(write(tmp_path / "a.jsonl.zst", stream))) == 3
