"""The quickstart's five small corpora, out of files that are here anyway: no download.

    multilingual   texts/<language>.txt beside this file, original prose in many scripts
    docs           documentation of some of Python's own library modules, and help topics
    code           other modules of that library, as they are
    worked         arithmetic and word problems with their solutions (reasoning.py)
    long           the longest modules, and help topics bound into chapters

No file of the library feeds two corpora, so the held-out end of one is not trained on in another.
`documents()` gives all of them with their labels.
"""

import ast
import hashlib
import os
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from examples.quickstart.reasoning import worked_problems

LONG_MODULE_BYTES = 48_000
SKIPPED_FOLDERS = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"),
    *("encodings", "lib-dynload", "pydoc_data", "ensurepip"),  # tables and binaries
}


# fmt: off
LANGUAGES = {  # of texts/*.txt, as data_prep/languages.csv writes them
    "ar": "arb_Arab", "de": "deu_Latn", "el": "ell_Grek", "en": "eng_Latn", "es": "spa_Latn",
    "fr": "fra_Latn", "he": "heb_Hebr", "hi": "hin_Deva", "ja": "jpn_Jpan", "ko": "kor_Hang",
    "pt": "por_Latn", "ru": "rus_Cyrl", "sw": "swh_Latn", "th": "tha_Thai", "tr": "tur_Latn",
    "zh": "zho_Hans",
}
# fmt: on


def documents() -> Iterator[dict[str, str]]:
    """Every document as mq3 data tokenize reads one: id, text and labels."""
    for source, (domain, language, collect) in CORPORA.items():
        for number, text in enumerate(collect()):
            labels = {"source": source, "domain": domain, "language": language}
            yield {"id": f"{source}/{number}", "text": text, **labels}
    for name, language in LANGUAGES.items():
        for number, text in enumerate(multilingual(name)):
            labels = {"source": "multilingual", "domain": "web", "language": language}
            yield {"id": f"multilingual/{name}/{number}", "text": text, **labels}


def multilingual(name: str) -> list[str]:
    """The pieces of texts/<name>.txt, which a line of %% divides."""
    pieces = (Path(__file__).parent / "texts" / f"{name}.txt").read_text("utf-8").split("\n%%\n")
    return [piece.strip() + "\n" for piece in pieces if piece.strip()]


def docs() -> list[str]:
    """A page for each module that is divided off for documentation, and every second help topic."""
    pages = (_documentation(path) for path, use in _library() if use == "docs")
    return [page for page in pages if len(page) > 300] + _help_topics()[0::2]


def code() -> list[str]:
    return _modules("code", megabytes=3.0)


def worked() -> list[str]:
    return worked_problems(megabytes=1.2, seed=0)


def long() -> list[str]:
    return _modules("long", megabytes=2.5) + _chapters(_help_topics()[1::2])


CORPORA: dict[str, tuple[str, str, Callable[[], list[str]]]] = {  # domain, language, documents
    "docs": ("reference", "eng_Latn", docs),
    "code": ("code", "und", code),
    "worked": ("reasoning", "eng_Latn", worked),
    "long": ("code", "und", long),
}


def _modules(use: str, megabytes: float) -> list[str]:
    """Modules of one use in a fixed random order, about so many megabytes."""
    paths = [path for path, its_use in _library() if its_use == use]
    Random(0).shuffle(paths)
    texts: list[str] = []
    size = 0
    for path in paths:
        text = _read(path)
        if text.strip() and size < megabytes * 1e6:
            texts.append(text)
            size += len(text.encode())
    return texts


def _library() -> Iterator[tuple[Path, str]]:
    """Python's own library modules, sorted, with the one corpus that each is for."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if _wanted(name))
        for name in sorted(files):
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                yield path, _use(path, path.relative_to(root).as_posix())


def _wanted(folder: str) -> bool:
    return folder not in SKIPPED_FOLDERS and not folder.startswith("config-")


def _use(path: Path, name: str) -> str:
    if path.stat().st_size >= LONG_MODULE_BYTES:
        return "long"
    return "docs" if hashlib.sha256(name.encode()).digest()[0] < 256 * 3 // 5 else "code"


def _read(path: Path) -> str:
    """A module's text, in the encoding that it declares; nothing where it declares a wrong one."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError):
        return ""


def _documentation(path: Path) -> str:
    """The docstrings of a module, under the names and signatures they belong to."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # old modules have string escapes that newer Pythons mind
            tree = ast.parse(_read(path))
    except SyntaxError:
        return ""
    head = f"{path.stem if path.stem != '__init__' else path.parent.name}\n\n"
    return head + "\n\n".join([ast.get_docstring(tree) or "", *_described(tree, "")]).strip() + "\n"


def _described(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for child in node.body:
        if not isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        text = ast.get_docstring(child)
        if isinstance(child, ast.ClassDef):
            title = f"class {prefix}{child.name}"
        else:
            title = f"{prefix}{child.name}({ast.unparse(child.args)})"
        if text:
            yield f"{title}\n\n{text}"
        if isinstance(child, ast.ClassDef):
            yield from _described(child, f"{prefix}{child.name}.")


def _help_topics() -> list[str]:
    """The language reference that `help()` shows; some distributions leave it out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    return [topics[name].strip() + "\n" for name in sorted(topics)]


def _chapters(topics: list[str]) -> list[str]:
    """Topics bound together, each chapter as long as a long module."""
    chapters = [""]
    for topic in topics:
        if len(chapters[-1]) >= LONG_MODULE_BYTES:
            chapters.append("")
        chapters[-1] += topic + "\n\n"
    return [chapter for chapter in chapters if len(chapter) >= LONG_MODULE_BYTES]
