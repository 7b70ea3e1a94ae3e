"""Labels, names and models' words are shown as text: no markup, no escapes, no forged lines."""

import io
import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import rich.console

from data_prep.cells import Cell
from data_prep.clean import report as clean_report
from data_prep.inventory import Inventory
from data_prep.labels import Labels
from data_prep.mixing.plan import plan
from megatron_qwen3 import bar
from megatron_qwen3.cli import inspect_shards, mix_curriculum, tokenize_corpus
from megatron_qwen3.generate.session import Session
from megatron_qwen3.pages import curriculum as curriculum_page
from megatron_qwen3.pages import page, pictures
from megatron_qwen3.shown import shown
from megatron_qwen3.training.console import Console, source_line
from tests.unit.test_mixing import one_stage

HOSTILE = "[/red][bold]\x1b[2J\n\u202eab\udc80 $\\frac{$<b>"
SAFE = shown(HOSTILE)
LABELS = Labels(HOSTILE, "eng_Latn", HOSTILE, "high", "unknown", "0-4k")
CELL = Cell("a/00000-000", LABELS, documents=30, tokens=60_000, bytes=200_000)


def inventory_of(cells):
    return Inventory(Path("/nowhere"), {"path": "tokenizer"}, 3, ("a",), tuple(cells))


def assert_safe(printed, whole=True):
    assert "\x1b[2J" not in printed and "\u202e" not in printed
    printed.encode()
    assert not whole or SAFE in printed


@pytest.fixture
def wide(monkeypatch):
    """Consoles so wide that no cell is folded."""
    make = rich.console.Console.__init__

    def made(console, *arguments, **named):
        make(console, *arguments, **named | {"width": 400})

    monkeypatch.setattr(rich.console.Console, "__init__", made)


def test_tables_of_shards(wide, capsys, tmp_path):
    report = tokenize_corpus.TokenizeReport(inventory_of([CELL]), 30, {})
    tokenize_corpus._print(report, tmp_path / HOSTILE, 1.0)
    assert_safe(capsys.readouterr().out)


@pytest.mark.parametrize("cells", [[], [replace(CELL, tokens=0, bytes=0)]])
def test_shards_without_tokens_have_a_table(cells, capsys):
    inspect_shards.print_table(inventory_of(cells), ["source"], 5)
    assert "–" in capsys.readouterr().out


def test_tables_and_pages_of_a_curriculum(wide, capsys, tmp_path):
    other = Cell("b/00000-000", LABELS._replace(source="web"), 30, 60_000, 200_000)
    inventory = Inventory(tmp_path, {"path": "tokenizer"}, 3, ("a",), (CELL, other))
    curriculum = plan(inventory, one_stage(50_000))
    mix_curriculum._print(curriculum, 9)
    assert_safe(capsys.readouterr().out)
    curriculum_page.write(curriculum, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert_safe(html, whole=False)
    assert "<b>" not in html.split("<table")[1]


def test_tables_and_pictures_of_a_cleaning(wide, tmp_path):
    rows = [[HOSTILE, HOSTILE, HOSTILE, 5, 100], ["web", "eng_Latn", "kept", 5, 100]]
    problems = [{"file": HOSTILE, "line": 3, "kind": "no text", "detail": HOSTILE}]
    content = {"rows": rows, "problems": {"no text": 1}, "first_problems": problems}
    out = io.StringIO()
    (tmp_path / clean_report.REPORT).write_text(json.dumps(content))
    read = clean_report.read_report(tmp_path)
    clean_report.print_report(read, rich.console.Console(file=out))
    assert_safe(out.getvalue())
    assert clean_report.picture(content).startswith(b"\x89PNG")


@pytest.mark.parametrize("in_terminal", [True, False])
def test_bars_and_lines_of_a_tokenization(wide, monkeypatch, in_terminal):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(bar, "LINE_SECONDS", 0.0)
    if in_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with bar.Bar("", 100, bar.in_megabytes) as progress:
        progress.stage(HOSTILE, 2, 50)
        progress.say(HOSTILE)
    assert_safe(out.getvalue())


def test_lines_of_a_run(wide, capsys):
    console = Console(10, 0, 1)
    console.say(f"resumed from {HOSTILE}")
    console.say(source_line(HOSTILE, 9, {"loss": 1.0, "bits_per_byte": 1.0, "tokens": 9}))
    console.close()
    printed = capsys.readouterr().out
    assert_safe(printed)
    assert printed.count(SAFE) == 2 and printed.count("\n") == 2


def test_a_command_in_a_file_says_now_and_then_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(bar, "LINE_SECONDS", 0.0)
    with bar.Bar(HOSTILE, 4) as shown:
        for count in (1, 2, 1):
            shown.advance(count)
    told = capsys.readouterr().err
    assert_safe(told)
    assert [f"{n} of 4  " in line for n, line in zip((1, 3, 4), told.splitlines(), strict=True)]
    with bar.Bar("texts", 4, is_shown=False) as hidden:
        hidden.advance(1)
        hidden.say("a note of another rank")
    assert not capsys.readouterr().err


def test_a_text_beyond_what_the_model_was_trained_to_read_is_noted_once(capsys):
    session = object.__new__(Session)
    session.is_first, session._reach = True, 8
    request = types.SimpleNamespace(prompt=[1] * 5)
    for count in (3, 4, 9):
        session._note_reach([request], [types.SimpleNamespace(tokens=[1] * count)])
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "a text of 9 tokens, and the model reads 8 as it was trained; rope.yarn_factor" in told
    session._reach = 0  # any number
    session._note_reach([request], [types.SimpleNamespace(tokens=[1] * 99)])
    assert not capsys.readouterr().err


def test_text_that_a_model_wrote_keeps_its_lines_and_steers_no_terminal(capsys):
    session = object.__new__(Session)
    session.is_first = True
    session._print("a\n\tb\x1b]0;x\x07\r\u202e")
    assert capsys.readouterr().out == "a\n\tb\\x1b]0;x\\x07\\r\\u202e"


def test_pages_and_pictures_have_neither_markup_nor_controls_of_what_they_show(tmp_path):
    with pictures.style():
        axes = pictures.axes("x", HOSTILE)
        axes.plot([1, 2], [1, 2], label=HOSTILE)
        axes.legend()
        picture = pictures.finish(axes, "name", HOSTILE, HOSTILE, is_wide=False)
    body = [page.numbers([(HOSTILE, HOSTILE)]), page.table(HOSTILE, [[HOSTILE], [HOSTILE]])]
    body += [page.text(HOSTILE, [HOSTILE]), page.files(HOSTILE, [(HOSTILE, HOSTILE)]), page.FIGURES]
    page.write(tmp_path / "page.html", HOSTILE, HOSTILE, body, [picture])
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert_safe(html, whole=False)
    assert "$<b>" not in html and "&lt;b&gt;" in html
