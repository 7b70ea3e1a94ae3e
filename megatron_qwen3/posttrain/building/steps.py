"""What a person sees of a build, on standard error: a bar for each step, and notes.

with steps.bar("thinking answers", total=5000, done=1200) as bar:
    bar.advance()
steps.say("note: …")
"""

import sys

from megatron_qwen3.bar import Bar
from megatron_qwen3.shown import shown


class Steps:
    """Of one build."""

    def bar(self, title: str, total: int, done: int = 0) -> Bar:
        """Of `total` things, of which an earlier run did `done`."""
        bar = Bar(title, total)
        bar.skip(done)
        return bar

    def say(self, line: str) -> None:
        """Where no bar is open."""
        print(shown(line), file=sys.stderr)
