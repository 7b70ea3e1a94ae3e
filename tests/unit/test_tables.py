"""Tables look alike everywhere, show cells as they stand, and cut no number."""

import io

import pytest
from rich.console import Console

from megatron_qwen3 import tables
from megatron_qwen3.shown import shown

HOSTILE = "[/red][bold]\x1b[2J\n\u202eab\udc80"


def printed(table, width=200):
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def test_titles_names_and_cells_are_shown_as_they_stand():
    text = printed(tables.table([[HOSTILE, HOSTILE], [HOSTILE, HOSTILE]], title=HOSTILE))
    assert "\x1b" not in text and "\u202e" not in text
    assert text.count(shown(HOSTILE)) == 5


def test_the_first_column_has_words_and_the_others_numbers_on_the_right():
    lines = printed(tables.table([["name", "tokens"], ["a", "1"], ["long", "1,000,000"]]))
    rows = [line.rstrip() for line in lines.splitlines() if line.strip()]
    assert rows[0].startswith(" name") and rows[0].endswith("tokens")
    assert rows[2].startswith(" a ") and rows[2].index("1") == rows[3].rindex("0")
    swapped = printed(tables.table([["tokens", "name"], ["1", "a"]], words=["name"]))
    assert swapped.splitlines()[-2].startswith("      1")


@pytest.mark.parametrize("width", [20, 40, 80])
def test_where_there_is_no_room_words_fold_and_numbers_stay_whole(width):
    table = tables.table([["name", "tokens"], ["a-name-that-is-too-long" * 3, "1234567"]])
    text = printed(table, width)
    assert "1234567" in text and "…" not in text
    found = "".join(line[:-9].strip() for line in text.splitlines()[3:])
    assert "a-name-that-is-too-long" * 3 in found.replace(" ", "")


def test_long_names_of_numbers_take_several_lines_so_that_columns_stay_narrow():
    text = printed(tables.table([["group", "90th percentile"], ["all", "5 %"]]))
    assert "90th" in text and "percentile" in text and "90th percentile" not in text
    assert len(text.splitlines()[1]) < 25


def test_a_file_gets_tables_as_wide_as_they_are(capsys):
    tables.console().print(tables.table([["name", *map(str, range(20))], ["a", *["100"] * 20]]))
    out = capsys.readouterr().out
    assert out.count("100") == 20 and tables.console().width == tables.FILE_WIDTH
