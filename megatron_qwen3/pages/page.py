"""A web page that needs no other file: headings, large numbers, tables and pictures.

    page.write(out, "Training report", names, [page.numbers(tiles), page.FIGURES], pictures)

What comes from files is escaped here; a section of the body is HTML.
"""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_qwen3.shown import shown, shown_text
from megatron_qwen3.storage.whole import write_whole

if TYPE_CHECKING:  # a page alone needs no matplotlib, which loads slowly
    from megatron_qwen3.pages.pictures import Picture

FIGURES = "<!-- figures -->"  # the section of the body where the pictures stand


def write(
    out: Path, heading: str, subtitle: str, body: Iterable[str], pictures: Sequence["Picture"]
) -> None:
    """Write the page to `out` and its pictures as PNG to the folder of the same name."""
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        write_whole(folder / f"{picture.name}.png", [picture.png])
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    title, below = _escaped(heading), _escaped(subtitle)
    lines = [
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}: {below}</title><style>{style}</style>",
        f"<main><header><h1>{title}</h1><p>{below}</p></header>",
        *(_figures(pictures) if section == FIGURES else section for section in body),
        "</main></html>\n",
    ]
    write_whole(out, ["\n".join(lines).encode(errors="backslashreplace")])


def numbers(tiles: Iterable[tuple[str, str]]) -> str:
    """A few large numbers, each with what it is; those without a number are left out."""
    cells = [
        f"<div><b>{_escaped(number)}</b><span>{_escaped(what)}</span></div>"
        for number, what in tiles
        if number
    ]
    return f'<section class="numbers">{"".join(cells)}</section>'


def table(title: str, rows: Sequence[Sequence[str]], groups: Sequence[tuple[str, int]] = ()) -> str:
    """A section with a table; groups are names that span columns, above the line of headers."""
    header, *lines = ([_escaped(cell) for cell in row] for row in rows)
    head = "".join(f'<th colspan="{width}">{_escaped(name)}</th>' for name, width in groups)
    head = f'<tr class="groups">{head}</tr>' if head else ""
    head += f"<tr>{''.join(f'<th>{cell}</th>' for cell in header)}</tr>"
    body = "".join(
        f"<tr><th>{line[0]}</th>{''.join(f'<td>{cell}</td>' for cell in line[1:])}</tr>"
        for line in lines
    )
    content = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
    return f'<section><h2>{_escaped(title)}</h2><div class="scroll">{content}</div></section>'


def text(title: str, paragraphs: Iterable[str]) -> str:
    """A section of plain sentences."""
    body = "".join(f"<p>{_escaped(paragraph)}</p>" for paragraph in paragraphs)
    return f"<section><h2>{_escaped(title)}</h2>{body}</section>"


def code(title: str, content: str) -> str:
    """A section with a file to copy."""
    return (
        f"<section><h2>{_escaped(title)}</h2><details open><summary>TOML</summary>"
        f"<pre>{html.escape(shown_text(content))}</pre></details></section>"
    )


def _escaped(text: str) -> str:
    """A line for a page: neither markup nor characters that turn the line around."""
    return html.escape(shown(text))


def _figures(pictures: Sequence["Picture"]) -> str:
    figures = "\n".join(
        f'<figure class="{"wide" if picture.is_wide else "half"}"><figcaption>'
        f"<b>{_escaped(picture.title)}</b> {_escaped(picture.caption)}</figcaption>"
        f"{picture.svg}</figure>"
        for picture in pictures
    )
    return f'<section class="figures">{figures}</section>'
