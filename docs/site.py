"""The site's files: every page of mkdocs.yml's `nav`, at its path in the repository.

mkdocs calls `on_files` (`hooks` in mkdocs.yml). Pages of folders stay where their code is, and
links between pages are paths of the repository, which hold in a checkout and in the site alike.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OTHERS = ("LICENSE", "docs/report.png")


def on_files(files: Files, config: Any) -> Files:
    """The pages of `nav` and the files that they link to, with those of the theme."""
    pages = [File.generated(config, path, abs_src_path=str(ROOT / path)) for path in paths(config)]
    theme = [file for file in files if file.src_dir != config.docs_dir]
    return Files([*theme, *pages])


def paths(config: Any) -> Iterator[str]:
    """Paths from the repository's root."""
    yield from leaves(config.nav)
    yield from OTHERS


def leaves(nav: Any) -> Iterator[str]:
    """The pages of a nav: a path, or a list or a table of navs."""
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(item)
