"""Progress of a build, on standard error: a bar for each step, and notes.

with steps.bar("thinking answers", total=5000, done=1200) as bar:
    bar.advance()
steps.say("note: …")
"""

import sys

from megatron_qwen3.bar import Bar
from megatron_qwen3.shown import shown


class Steps:
    """The bars and notes of one build."""

    def bar(self, title: str, total: int, done: int = 0) -> Bar:
        """The bar of a step of `total` items, `done` of them by an earlier run."""
        bar = Bar(title, total)
        bar.skip(done)
        return bar

    def say(self, line: str) -> None:
        """Print a note, while no bar is open."""
        print(shown(line), file=sys.stderr)
