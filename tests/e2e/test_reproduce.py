"""The small form of the reproduction, as `make reproduce-smoke` made it: all ran, all is told."""

import html
import json
from pathlib import Path

import pytest

from examples.reproduce.__main__ import main
from examples.reproduce.claims import CLAIMS
from examples.reproduce.parts import parts
from examples.reproduce.plan import SIZES
from examples.reproduce.running import done

ROOT = Path(__file__).parents[2]
SMOKE = Path("runs/reproduce/smoke")

pytestmark = pytest.mark.skipif(
    not (ROOT / SMOKE / "report.json").exists(), reason="make reproduce-smoke has not run here"
)


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_every_part_ran():
    for part in parts(SIZES["smoke"], SMOKE, (1,)):
        assert done(SMOKE, part), part.name


def test_the_page_has_every_claim_with_its_numbers():
    content = json.loads((SMOKE / "report.json").read_text())
    page = html.unescape((SMOKE / "report.html").read_text())
    assert [claim["key"] for claim in content["claims"]] == [claim.key for claim in CLAIMS]
    for claim in content["claims"]:
        assert claim["holds"] is not None and claim["numbers"], claim["key"]
        assert claim["title"] in page
        for number in claim["numbers"]:
            assert number["name"] in page


def test_what_is_done_is_not_done_again(capsys):
    before = {path: path.stat().st_mtime_ns for path in (SMOKE / "parts").iterdir()}
    assert main(["--size", "smoke"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (SMOKE / "parts").iterdir()} == before
    assert capsys.readouterr().out.strip().endswith("report.html")


def test_a_part_that_there_is_not_is_named_with_those_that_there_are(capsys):
    assert main(["--size", "smoke", "--parts", "fusion_9"]) == 2
    assert "--parts fusion_9: no part; valid: words, " in capsys.readouterr().err
