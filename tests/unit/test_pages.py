"""One module renders pages: its input becomes no markup, and no page needs a network."""

import ast
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_qwen3.pages import page, pictures
from megatron_qwen3.posttrain.watching.samples import Block

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "</pre></style><script>alert(1)</script>{{ 7*7 }}{% raw %}\x1b[2J\u202e\udc80\"'&"
SPANS = [(HOSTILE, ""), (HOSTILE, "forced"), (HOSTILE, "tool")]
ANSWER = page.ShownAnswer(
    name=HOSTILE,
    badges=[HOSTILE],
    messages=[(HOSTILE, HOSTILE)],
    blocks=[Block("thinking", SPANS), Block("answer", SPANS)],
    ending=HOSTILE,
    parts=[(HOSTILE, HOSTILE, HOSTILE)],
)
VOID = {"meta", "path", "use", "rect", "br"}


class Tags(HTMLParser):
    """The tags of a page, each of which has to be closed where it was opened."""

    def __init__(self, html):
        super().__init__()
        self.open, self.names, self.attributes = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs
        if tag not in (*VOID, "html"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag != "html":
            assert self.open and self.open.pop() == tag, tag


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A page of every kind of section, with the same text in every place that takes one."""
    with pictures.style():
        axes = pictures.axes(HOSTILE, HOSTILE)
        axes.plot([1, 2], [1, 2], label=HOSTILE)
        axes.legend()
        picture = pictures.finish(axes, "name", HOSTILE, HOSTILE, is_wide=True)
    body = [
        page.numbers([(HOSTILE, HOSTILE), ("", "left out")]),
        page.table(HOSTILE, [[HOSTILE, HOSTILE], [HOSTILE, HOSTILE]], [("", 1), (HOSTILE, 1)]),
        page.text(HOSTILE, [HOSTILE, HOSTILE]),
        page.files(HOSTILE, [(HOSTILE, f"a\n\tb {HOSTILE}")], is_open=True),
        page.answers(HOSTILE, [ANSWER], is_open=True),
        page.FIGURES,
        HOSTILE,  # which is no section
    ]
    out = tmp_path_factory.mktemp("page") / "page.html"
    page.write(out, HOSTILE, HOSTILE, body, [picture])
    return out.read_text(encoding="utf-8"), out


def test_text_becomes_no_markup_wherever_it_stands(whole):
    html, _ = whole
    tags = Tags(html)
    assert not tags.open and "script" not in tags.names
    assert not any(name.startswith("on") for name, _ in tags.attributes)
    outside = re.sub(r"<svg.*?</svg>", "", html, flags=re.S)
    assert (
        outside.count("&lt;script&gt;alert(1)") == html.count("7*7 }}") - svg_texts(html) == 22 + 15
    )
    assert "49" not in re.sub(r"<(svg|style).*?</\1>", "", html, flags=re.S)
    assert "\x1b" not in html and "\u202e" not in html
    assert "left out" not in html


def svg_texts(html):
    return sum(svg.count("7*7 }}") for svg in re.findall(r"<svg.*?</svg>", html, flags=re.S))


def test_files_keep_their_lines_and_everything_else_is_one_line(whole):
    html, _ = whole
    assert "<pre>a\n\tb &lt;/pre&gt;" in html
    assert "<details open>" in html


def test_a_page_needs_no_other_file(whole):
    html, out = whole
    tags = Tags(html)
    assert not {"link", "img", "iframe", "object", "script"} & set(tags.names)
    links = [(k, v) for k, v in tags.attributes if k in ("src", "href", "xlink:href")]
    assert all(value.startswith("#") for _, value in links), links
    assert "@import" not in html and "url(http" not in html
    assert (out.with_suffix("") / "name.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_have_a_name_for_who_does_not_see_them(whole):
    labels = [v for k, v in Tags(whole[0]).attributes if k == "aria-label"]
    assert len(labels) == 1 and labels[0].startswith("</pre></style><script>")


def test_nothing_else_makes_html():
    made = re.compile(r"</?(html|main|section|table|t[rdh]|div|span|details|pre|figure|svg)[ >]")
    for folder in ("megatron_qwen3", "data_prep", "tools", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                match node:
                    case ast.Attribute(attr="escape", value=ast.Name(id="html")):
                        raise AssertionError(f"{path}:{node.lineno}: html.escape")
                    case ast.Constant(value=str(text)) if path.name != "pictures.py":
                        assert not made.search(text), f"{path}:{node.lineno}: {text}"
