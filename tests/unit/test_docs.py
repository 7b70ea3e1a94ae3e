"""Pages say things that are so: commands parse, and files, settings, targets and anchors exist."""

import functools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from megatron_qwen3 import entry
from megatron_qwen3.cli import commands
from megatron_qwen3.cli.commands import COMMANDS, GROUPS
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
# Neither hidden nor what commands make in a checkout.
MADE = re.compile(r"(^|/)\.(?!ci/)|^(runs|data|wheels|build)/|__pycache__")
FILES = [
    path.as_posix()
    for path in (path.relative_to(ROOT) for path in ROOT.rglob("*"))
    if not MADE.search(path.as_posix())
]
TOP = {file.partition("/")[0] for file in FILES if "/" in file}
NAV = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
PAGES = sorted(path for path in FILES if path.endswith(".md"))
# It says what earlier versions had, too.
OF_TODAY = [page for page in PAGES if page != "CHANGELOG.md"]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
# Files that readers make, or that formats of others have.
FILE_ENDS = (".py", ".json", ".jsonl", ".safetensors", ".toml", ".html", ".sbatch", ".bin")
THEIRS = re.compile(
    r"^(runs|data|work|plan|logs|index|documents|shards|checkpoints|export|/|preprocess_data.py)"
    r"|[A-Z]{4}|…|<|\*\.py"
)


class Typed(NamedTuple):
    """A command as a page has it, and whether a reader can type it as it stands."""

    words: list[str]
    is_whole: bool


class Parsed(Exception):
    """A command's parser took its words."""


@functools.cache
def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page):
    """The code blocks of a page, fenced or indented."""
    text = text_of(page)
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language in ("", "bash"):
            yield block
    yield from re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)


def inline(page):
    """The code spans of a page's prose."""
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def words_of(line):
    """As a shell splits a line, without redirections; none of a line that is no command."""
    line = re.sub(r"\[[^\]=]*(=[^\]]*)?…\]|…| > \S+$", "", line)  # [key=value …]
    try:
        return [] if line.startswith("error: ") else shlex.split(line, comments=True)
    except ValueError:
        return []


def typed(page):
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            if words := words_of(line.strip().removeprefix("$ ").partition(" && ")[0]):
                yield Typed(words, is_whole=True)
    for span in inline(page):
        if words := words_of(span):
            yield Typed(words, is_whole=False)


def as_mq3(words):
    """The words after mq3 of a call of our commands, by whichever name; None for another call."""
    if words[0] == "mq3":
        return words[1:]
    if words[0] in ("torchrun", "python") and "-m" in words[:-1]:
        module, *rest = words[words.index("-m") + 1 :]
        if module in ("megatron_qwen3", "megatron_qwen3.train"):
            return [*module.split(".")[1:], *rest]
    return None


def parse(words, monkeypatch):
    """Have the command's own parser take the words: Parsed, or SystemExit."""

    def then_stop(method):
        def parse(*given):
            method(*given)
            raise Parsed

        return parse

    with monkeypatch.context() as patch:
        patch.setattr(entry, "parse", then_stop(entry.parse))
        patch.setattr(Parser, "parse_args", then_stop(Parser.parse_args))
        commands.main(words)


@pytest.mark.parametrize("page", OF_TODAY)
def test_commands_of_a_page_are_taken_by_their_parsers(page, monkeypatch, capsys):
    for call in typed(page):
        assert not re.search(r"\btools/\w+\.py", " ".join(call.words)), call
        words = as_mq3(call.words)
        if words is None or words[:1] in ([], ["--help"]):
            continue
        name, _ = commands.find(words)
        assert name in COMMANDS or name in GROUPS, call
        if name in GROUPS or "|" in words:
            continue
        with pytest.raises((Parsed, SystemExit)) as stop:
            parse(words, monkeypatch)
        told = capsys.readouterr().err
        is_taken = stop.type is Parsed or not stop.value.code
        # A span may leave out required arguments.
        assert is_taken or (not call.is_whole and " required" in told), (call, told)


def options_of(words):
    return [word.partition("=")[0] for word in words if word.startswith("--")]


def options_in(script):
    """Options that a script, or a module that it imports from its own folder, adds."""
    own = [script, *re.findall(r"(?:from|import) (benchmarks[\w.]*)", text_of(script))]
    files = [f for f in FILES if f.startswith(tuple(o.replace(".", "/") for o in own[1:]))]
    code = "".join(text_of(file) for file in [script, *files] if file.endswith(".py"))
    return ["--help", *re.findall(r"\"(--[a-z][\w-]*)\"", code)]


@pytest.mark.parametrize("page", OF_TODAY)
def test_scripts_tests_and_targets_that_a_page_calls_exist(page):
    for words, _ in typed(page):
        if words[0] == "make" and len(words) > 1:
            target = next(word for word in words[1:] if "=" not in word)
            assert target in TARGETS, words
        if words[0] in ("python", "bash", "sbatch", "pytest"):
            for word in words[1:]:
                is_file = word.endswith((".py", ".sh", ".sbatch")) and not THEIRS.search(word)
                assert not is_file or word in FILES, words
                if is_file and words[0] == "python":
                    unknown = set(options_of(words)) - set(options_in(word))
                    assert not unknown, (words, unknown)
        if "-m" in words[:-1] and words[words.index("-m") + 1].startswith("megatron_qwen3."):
            module = words[words.index("-m") + 1].rstrip(".").replace(".", "/")
            assert {f"{module}.py", f"{module}/__init__.py"} & {*FILES}, words


@pytest.mark.parametrize("page", OF_TODAY)
def test_files_that_a_page_names_exist(page):
    for span in inline(page):
        for word in span.split():
            if not re.fullmatch(r"[\w./*-]+", word) or THEIRS.search(word):
                continue
            if word.split("/")[0] in TOP or word.endswith((".py", ".sh", ".sbatch")):
                pattern = re.escape(word.rstrip("/.")).replace(r"\*", "[^/]*")
                found = re.compile(rf"(^|/){pattern}($|/)")
                assert any(found.search(file) for file in FILES), (word, span)


@pytest.mark.parametrize("page", OF_TODAY)
def test_settings_that_a_page_names_exist(page):
    tables = {name.partition(".")[0] for name in SETTINGS}
    groups = {name.rpartition(".")[0] for name in SETTINGS}
    for words, _ in typed(page):
        for word in words:
            key = re.match(r"[a-z_]+(?:\.[a-z_0-9]+)+(?=[=,;)]|$)", word)
            if not key or key[0].partition(".")[0] not in tables or key[0].endswith(FILE_ENDS):
                continue
            assert key[0] in SETTINGS or key[0] in groups, (key[0], words)


def anchors(page):
    heads = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_to_pages_and_to_headings_of_them(page):
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target.relative_to(ROOT)), link


# Sentences that readers had to guess at, and the names that went with them.
RIDDLES = """
    most of that is who multiplies
    what is won is what is around them
    a wrong one is told before any rank starts
    what larger ones will lose
    says of itself stands
    was dropped for itself
    that are called otherwise are named
    killed is not broken
    what cannot be is refused
    loss that means the global batch
""".strip()


@pytest.mark.parametrize("riddle", map(str.strip, RIDDLES.splitlines()))
def test_no_riddle_comes_back(riddle):
    of_people = (".py", ".md", ".toml", ".sh", ".sbatch", ".html", ".txt")
    for file in FILES:
        if file.endswith(of_people) and not file.endswith("unit/test_docs.py"):
            text = re.sub(r"[\s#]+", " ", text_of(file)).lower()
            assert riddle not in text, file


def test_every_command_is_on_a_page():
    prose = " ".join(" ".join(text_of(page).split()) for page in OF_TODAY)
    assert not [name for name in COMMANDS if f"mq3 {name}" not in prose]


def test_every_page_is_in_the_site():
    assert sorted(NAV) == PAGES
