"""Complete commands, options and their values in a shell.

    source <(mq3 completion bash)                                          # in ~/.bashrc
    source <(mq3 completion zsh)                                           # in ~/.zshrc
    mq3 completion fish > ~/.config/fish/completions/mq3.fish              # once

The shell asks `mq3` itself at each TAB, by argcomplete's protocol: names are answered from the
table of commands, everything after them by the command's own parser.
"""

import sys
from collections.abc import Iterable, Sequence

import argcomplete
from argcomplete.shell_integration import shellcode

from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.shown import shown_text

SHELLS = ("bash", "zsh", "fish")


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Print the code for a shell; the exit status."""
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("shell", choices=SHELLS)
    given = parser.parse_args(arguments)
    print(shown_text(shellcode(["mq3"], shell=given.shell)), file=sys.stdout)
    return 0


def complete_names(names: Iterable[str]) -> None:
    """Answer the shell, and exit, where the words so far name no command yet."""
    root = Parser(prog="mq3")
    groups = {"": root.add_subparsers()}
    for name in names:
        group, _, last = name.rpartition(" ")
        if group not in groups:
            groups[group] = groups[""].add_parser(group).add_subparsers()
        groups[group].add_parser(last)
    argcomplete.autocomplete(root)
