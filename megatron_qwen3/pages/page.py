"""Renders a web page that needs no other file: headings, large numbers, tables and pictures.

    page.write(out, "Training report", names, [page.numbers(tiles), page.FIGURES], pictures)

The one place that makes HTML: page.html is the page, sections.html its sections, page.css its look.
jinja2 escapes every text that it is given, after `shown` removed characters that turn a line
around; only a section, made here, is HTML already.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from megatron_qwen3.shown import shown, shown_text
from megatron_qwen3.storage.whole import write_whole

if TYPE_CHECKING:  # a page alone needs no matplotlib, which loads slowly
    from megatron_qwen3.pages.pictures import Picture

FIGURES = Markup("<!-- figures -->")  # the section of the body where the pictures stand


def _shown(value: Any) -> Any:
    return value if isinstance(value, Markup) else shown(value)


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["lines"] = lambda text: escape(shown_text(text))


def write(
    out: Path, heading: str, subtitle: str, body: Iterable[Markup], pictures: Sequence["Picture"]
) -> None:
    """Write the page to `out` and its pictures as PNG to the folder of the same name.

    body: sections in their order, from the functions below, and FIGURES.
    """
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        write_whole(folder / f"{picture.name}.png", [picture.png])
    figures = _section("figures", pictures)
    sections = [figures if section == FIGURES else section for section in body]
    page = _ENVIRONMENT.get_template("page.html")
    html = page.render(heading=heading, subtitle=subtitle, sections=sections)
    write_whole(out, [html.encode(errors="backslashreplace")])


def numbers(tiles: Iterable[tuple[str, str]]) -> Markup:
    """A few large numbers, each with its name; those without a number are left out."""
    return _section("numbers", [(number, what) for number, what in tiles if number])


def table(
    title: str, rows: Sequence[Sequence[str]], groups: Sequence[tuple[str, int]] = ()
) -> Markup:
    """A table, headers first; groups are names that span columns, above the line of headers."""
    return _section("table", title, rows[0], rows[1:], groups)


def text(title: str, paragraphs: Iterable[str]) -> Markup:
    """Plain sentences."""
    return _section("text", title, paragraphs)


def files(title: str, contents: Iterable[tuple[str, str]], is_open: bool = False) -> Markup:
    """Files to read or copy, each folded behind its name unless `is_open`."""
    return _section("files", title, contents, is_open)


class ShownAnswer(NamedTuple):
    """An answer to read. name and badges: its line while it is folded; messages: role and text;
    blocks: kind ("thinking" is folded), spans of text with a mark ("", "forced", "tool") each, and
    characters; ending: how it ended, "" for as it should; parts: name, score, reason."""

    name: str
    badges: Sequence[str]
    messages: Sequence[tuple[str, str]]
    blocks: Sequence[Any]
    ending: str
    parts: Sequence[tuple[str, str, str]]


def answers(title: str, samples: Sequence[ShownAnswer], is_open: bool = False) -> Markup:
    """Dialogs to read, each folded behind its name unless `is_open`."""
    return _section("answers", title, samples, is_open)


def _section(macro: str, *arguments: Any) -> Markup:
    module: Any = _ENVIRONMENT.get_template("sections.html").module
    section: Markup = getattr(module, macro)(*arguments)
    return section
