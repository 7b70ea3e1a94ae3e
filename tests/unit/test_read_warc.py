"""Pages of a WARC become documents with url and date, by the example that cleans crawls."""

import gzip
import io
import json
from pathlib import Path

import pytest

from examples.data import read_warc

PAGE = """<html><head><title>Mill</title></head><body><nav><a href="/">Home</a> Menu</nav>
<article><h1>The mill</h1>{}</article><footer>Imprint</footer></body></html>"""
FIELDS = [("Content-Type", "text/html")]
SENTENCES = "<p>The old mill stands beside the river, and its wheel turns all the winter. </p>" * 6


def test_without_its_packages_the_example_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trafilatura", None)
    assert read_warc.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "python -m pip install -e '.[data,warc]'" in capsys.readouterr().err


def test_pages_become_documents_with_their_url_and_date(tmp_path: Path) -> None:
    for name in ("trafilatura", "warcio", "cchardet", "magic"):
        why = f"{name} is not installed: pip install -e '.[warc]'"
        pytest.importorskip(name, reason=why, exc_type=ImportError)  # magic, without its library
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    (tmp_path / "crawl").mkdir()
    with (tmp_path / "crawl/a.warc.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for k, body in enumerate([PAGE.format(SENTENCES), "\x00\x01"]):
            headers = StatusAndHeaders("200 OK", FIELDS, protocol="HTTP/1.0")
            writer.write_record(
                writer.create_warc_record(
                    f"https://mill.org/{k}",
                    "response",
                    payload=io.BytesIO(body.encode()),
                    http_headers=headers,
                    warc_headers_dict={"WARC-Date": "2024-02-29T12:00:00Z"},
                )
            )
    out = tmp_path / "out"
    assert read_warc.main([str(tmp_path / "crawl"), "--out", str(out), "--seconds", "60"]) == 0
    found = (gzip.decompress(file.read_bytes()) for file in out.glob("*.jsonl.gz"))
    lines = [line for content in found for line in content.splitlines()]
    (row,) = map(json.loads, lines)
    assert "The old mill stands beside the river" in row["text"] and "Menu" not in row["text"]
    assert row["url"] == "https://mill.org/0" and row["date"] == "2024-02-29T12:00:00Z"
