"""Cleaning reads from and writes to places that fsspec knows, and gives Parquet if asked."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datatrove")

import fsspec
from datatrove.data import Document

from data_prep import remote
from data_prep.clean import plan, stages
from data_prep.clean.result import FieldsFound
from data_prep.clean.settings import CleaningInput, CleanSettings
from data_prep.clean.web_steps import BlockedUrls, PersonalData
from data_prep.documents import FilePart, read
from data_prep.inventory import read_inventory
from data_prep.remote import files_below, is_url, opened, upload
from data_prep.shards import origin
from data_prep.tokenization.corpus import CorpusOptions, tokenize
from data_prep.tokenization.plan import Settings
from megatron_qwen3.cli import clean_corpus
from megatron_qwen3.config import ConfigError

WORDS = ("river", "hill", "water", "mill", "meadow", "winter", "farmer", "village", "bridge")
PERSONAL = "data_prep.clean.web_steps:PersonalData"
BLOCKED = "data_prep.clean.web_steps:BlockedUrls"


@pytest.fixture
def memory() -> Iterator[Any]:
    """A store of objects within this process."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def text(seed: int) -> str:
    words = random.Random(seed)
    return "\n".join(f"The {' '.join(words.choices(WORDS, k=12))}." for _ in range(12))


def rows(*extra: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"id": f"d{k}", "text": text(k), **more} for k, more in enumerate(extra)]


def jsonl(some: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in some)


def clean(tmp_path: Path, source: str, **settings: Any) -> CleanSettings:
    """All stages, in this process."""
    always = {"filters": False, "undetermined": True}
    given = CleanSettings(
        (CleaningInput("web", source),), str(tmp_path / "out"), **always, **settings
    )
    given.validate()
    files = plan.find_files(given)
    plan.begin(given, files)
    for stage in stages.stages(given, plan.input_bytes(files)):
        for task in range(stage.tasks):
            data = None
            for step in stage.pipeline:
                data = step(data, task, stage.tasks)
            assert list(data) == []
    return given


def kept(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    found = read(FilePart(str(path), 0, len(opened(path).read())), {}, ("all",))
    return [(d.id, f) for b in found for d, f in zip(b.documents, b.fields, strict=True)]


def test_what_lies_elsewhere_is_cleaned_to_the_same_documents(tmp_path: Path, memory: Any) -> None:
    some = rows({"url": "u0"}, {}, {}, {}, {}, {})
    files = {"a.jsonl": jsonl(some[:4]), "b/c.jsonl.gz": gzip.compress(jsonl(some[4:]), mtime=0)}
    for name, content in {**files, ".x/d.jsonl": jsonl(rows({})), "e.bin": b"x"}.items():
        memory.pipe(f"/web/{name}", content)
        (tmp_path / "web" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "web" / name).write_bytes(content)
    clean(tmp_path / "far", "memory://web", tasks=3, documents="memory://result/clean")
    clean(tmp_path / "near", str(tmp_path / "web"), tasks=3)
    far = [file.path for file in files_below("memory://result/clean")]
    near = sorted((tmp_path / "near/out/documents").iterdir())
    assert [path.rpartition("/")[2] for path in far] == [path.name for path in near]
    of_far = [document for path in far for document in kept(path)]
    of_near = [document for path in near for document in kept(path)]
    assert [(name, {**f, "file": ""}) for name, f in of_far] == [
        (name, {**f, "file": ""}) for name, f in of_near
    ]
    assert [name for name, _ in of_far] == [f"d{k}" for k in range(6)]
    assert of_far[0][1]["file"].endswith("web/a.jsonl") and is_url(of_far[0][1]["file"])
    assert not (tmp_path / "far/out/work").exists()


def test_documents_elsewhere_are_tokenized_to_the_same_shards(
    tmp_path: Path, memory: Any, tokenizer: str
) -> None:
    some = rows({"url": "u0"}, {}, {}, {})
    (tmp_path / "in").mkdir()
    for name, part in (("a.jsonl", some[:2]), ("b.jsonl", some[2:])):
        memory.pipe(f"/docs/{name}", jsonl(part))
        (tmp_path / "in" / name).write_bytes(jsonl(part))
    memory.pipe("/docs/.hidden/c.jsonl", jsonl(some))
    bins, inputs = [], []
    for out, source in (("far", "memory://docs"), ("near", str(tmp_path / "in"))):
        tokenize([source], tmp_path / out, Settings(tokenizer), CorpusOptions())
        bins.append([path.read_bytes() for path in sorted((tmp_path / out).rglob("*.bin"))])
        inputs.append(read_inventory(tmp_path / out).inputs)
    assert bins[0] == bins[1]
    assert inputs == [("memory:///docs/a.jsonl", "memory:///docs/b.jsonl"), ("a.jsonl", "b.jsonl")]
    path = next((tmp_path / "far").rglob("*.bin"))
    assert origin(str(path)[:-4], 0).file.startswith("memory:///docs/")
    with pytest.raises(ConfigError, match="no documents in memory://nothing"):
        tokenize(["memory://nothing"], tmp_path / "none", Settings(tokenizer), CorpusOptions())


def test_one_file_elsewhere_is_an_input_and_its_change_is_noticed(
    tmp_path: Path, memory: Any
) -> None:
    memory.pipe("/web/one.json", jsonl(rows({}, {})))
    given = CleanSettings((CleaningInput("web", "memory://web/one.json"),), str(tmp_path / "out"))
    files = plan.find_files(given)
    assert [file.path for file in files] == ["memory:///web/one.json"]
    plan.begin(given, files)
    memory.pipe("/web/one.json", jsonl(rows({}, {}, {})))
    with pytest.raises(ConfigError, match="its inputs have changed"):
        plan.begin(given, plan.find_files(given))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere://a/b", "nowhere://a/b is no place that fsspec knows .*; valid: a path, or a"),
        ("memory://empty", "memory://empty is or holds no file ending in one of"),
        ("s3://bucket/a", "s3://bucket/a: .*[Ii]nstall s3fs"),
    ],
)
def test_places_that_cannot_be_read_are_one_line(
    tmp_path: Path, memory: Any, url: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if url.startswith("s3"):
        try:
            import s3fs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("s3fs is installed: what is missing cannot be told")
    assert clean_corpus.main(["run", "--out", str(tmp_path / "o"), f"web={url}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(ConfigError, match=message):
        plan.find_files(CleanSettings((CleaningInput("web", url),), str(tmp_path / "o")))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_place_that_fails_while_it_is_read_is_no_damaged_file(
    memory: Any, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    memory.pipe(f"/web/a{suffix}", jsonl(rows({}, {})))

    class Failing:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.closed = False

        def read(self, *_: Any) -> bytes:
            raise OSError("the connection was reset")

        readline = seek = tell = read

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(type(memory), "open", Failing)
    with pytest.raises(OSError, match="memory://web/a.*the connection was reset"):
        list(read(FilePart(f"memory://web/a{suffix}", 0, 10), {}))


def test_a_copy_is_whole_or_not_there(tmp_path: Path, memory: Any) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    upload(tmp_path / "x", "memory://a/b/c")
    assert opened("memory://a/b/c").read() == b"abc"
    with pytest.raises(OSError, match="memory://a/b/none"):
        opened("memory://a/b/none")


def test_parquet_has_a_column_of_one_kind_for_each_field(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    some = rows(
        {"url": "https://a.b/ü", "n": 1, "mixed": 1, "share": 1, "big": 2**63},
        {"n": 2, "mixed": "x", "share": 0.5, "ok": True, "quality": 1},
        {"mixed": False, "deep": {"x": 1}, "url": "u"},
        {"text": text(3), "n": -3},
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(jsonl(some))
    given = clean(tmp_path, str(tmp_path / "in"), tasks=2, format="parquet")
    files = sorted(given.folder("documents").iterdir())
    schemas = {str(parquet.read_schema(file)) for file in files}
    assert [file.name for file in files] == ["00000.parquet", "00001.parquet"]
    assert len(schemas) == 1
    found = {row["id"]: row for file in files for row in parquet.read_table(file).to_pylist()}
    assert [found[f"d{k}"]["n"] for k in range(4)] == [1, 2, None, -3]
    assert [found[f"d{k}"]["mixed"] for k in range(4)] == ["1", "x", "false", None]
    assert [found[f"d{k}"]["share"] for k in range(4)] == [1.0, 0.5, None, None]
    assert found["d0"]["big"] == str(2**63) and found["d0"]["url"] == "https://a.b/ü"
    assert found["d1"]["quality"] == 1.0 and found["d1"]["ok"] is True
    assert "deep" not in found["d2"] and found["d2"]["text"] == text(2)
    again = dict(document for file in files for document in kept(file))
    assert again["d0"]["url"] == "https://a.b/ü" and again["d0"]["n"] == 1
    before = [file.read_bytes() for file in files]
    other = clean(tmp_path / "again", str(tmp_path / "in"), tasks=2, format="parquet")
    assert [file.read_bytes() for file in sorted(other.folder("documents").iterdir())] == before


def test_too_many_fields_for_a_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    fields = [{f"f{j}-{k}": 1 for k in range(100)} for j in range(11)]
    some = rows(*fields)
    (tmp_path / "in/a.jsonl").write_bytes(jsonl(some))
    with pytest.raises(ConfigError, match="1,0.. different fields, a table at most 1,000"):
        clean(tmp_path, str(tmp_path / "in"), format="parquet")


def test_fields_of_a_task_are_refused_before_they_fill_its_memory() -> None:
    found = FieldsFound()
    with pytest.raises(ConfigError, match="1,001 different fields, a table at most 1,000"):
        for k in range(10**6):
            found.add(Document("text", "id", metadata={f"field {k}": 1}))


def test_every_stage_has_a_name_that_time_and_memory_are_given_by(tmp_path: Path) -> None:
    for kind in ("jsonl", "parquet"):
        listed = stages.stages(CleanSettings((), str(tmp_path), format=kind), 1)
        names = [stage.name for stage in listed]
        assert names == [name for name in stages.STAGES if name != "columns" or kind == "parquet"]


def test_a_format_or_place_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    inputs, out = (CleaningInput("web", str(tmp_path / "in")),), str(tmp_path / "out")
    with pytest.raises(ConfigError, match="format = 'csv'; valid: jsonl, parquet"):
        CleanSettings(inputs, out, format="csv").validate()
    with pytest.raises(ConfigError, match="documents = .* lies within the input"):
        CleanSettings(inputs, out, documents=str(tmp_path / "in/x")).validate()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/00000.jsonl.zst").touch()
    with pytest.raises(ConfigError, match="full is not empty, and files there would be written"):
        CleanSettings(inputs, out, documents=str(tmp_path / "full")).check_folder()


# ---- steps for the web -------------------------------------------------------------------------


def test_addresses_become_the_same_made_up_ones_however_many_tasks_there_are(
    tmp_path: Path,
) -> None:
    personal = "Write to jane.doe@firm.org or max@firm.org from 8.8.8.8, not 192.168.0.1.\n"
    some = [{"id": f"{k}", "text": text(k) + "\n" + personal} for k in range(4)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(jsonl(some))
    steps = ("domain", "normalize", "language", "quality", PERSONAL)
    results = []
    for tasks in (1, 3):
        given = clean(tmp_path / f"{tasks}", str(tmp_path / "in"), tasks=tasks, steps=steps)
        texts = [
            document.text
            for file in sorted(given.folder("documents").iterdir())
            for batch in read(FilePart(str(file), 0, file.stat().st_size), {})
            for document in batch.documents
        ]
        results.append(texts)
        assert len(texts) == 4
        for found in texts:
            assert "firm.org" not in found and "8.8.8.8" not in found and "192.168.0.1" in found
            assert "email@example.com or firstname.lastname@example.org from 22." in found
    assert results[0] == results[1]


def test_documents_of_blocked_urls_are_dropped_in_any_number_of_tasks_and_others_stay(
    tmp_path: Path,
) -> None:
    for name in ("tldextract", "fasteners", "ahocorasick"):
        pytest.importorskip(name, reason=f"{name} is not installed: the filter of URLs needs it")
    some = rows(
        {"url": "https://bad.example.org/page"},
        {"url": "https://good.org/page"},
        {"url": 7},
        {},
        {"url": "http://[half/page:port"},
        {"url": "https://good.org/a/porn/video-7"},
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(jsonl(some))
    steps = (BLOCKED, "domain", "normalize", "language", "quality")
    given = {"extra_domains": ["example.org"], "use_integrated_lists": False}
    options = {BLOCKED: given | {"banned_words": ["porn"]}}
    results = []
    for tasks in (1, 3):
        settings = clean(
            tmp_path / f"{tasks}", str(tmp_path / "in"), tasks=tasks, steps=steps, options=options
        )
        files = sorted(settings.folder("documents").iterdir())
        results.append([document for file in files for document in kept(file)])
    names = {name for name, _ in results[0]}
    assert {"d1", "d2", "d3"} <= names and not {"d0", "d5"} & names
    assert results[0] == results[1]


def test_the_filter_of_urls_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tldextract", None)
    with pytest.raises(ConfigError, match=r"tldextract.*pip install 'megatron_qwen3\[urls\]'$"):
        BlockedUrls()
    assert PersonalData() is not None


@pytest.mark.parametrize("field", ["blob_id", "xet_hash", "ETag", "Last-Modified", "Content-MD5"])
def test_a_file_elsewhere_has_changed_where_its_listing_says_so(
    memory: Any, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """As hf:// and http:// list files: of these fields they say one or another."""

    def changed(value: str) -> int:
        listed = {"/b/a": {"name": "/b/a", "size": 3, "type": "file", field: value}}
        monkeypatch.setattr(type(memory), "find", lambda *_, **__: listed)
        return files_below("memory://b")[0].changed

    assert changed("1") == changed("1") != changed("2")


def test_all_that_the_hub_tells_of_a_files_contents_counts() -> None:
    hub = pytest.importorskip("huggingface_hub.hf_file_system")
    from huggingface_hub.hf_api import RepoFile

    def state(**changes: Any) -> int:
        told = {"path": "a", "size": 3, "oid": "1", "xetHash": "2"} | changes
        return remote._state(hub._cache_info_from_path_info(RepoFile(**told), "a"))

    assert state() == state() and len({state(), state(oid="3"), state(xetHash="4")}) == 3
