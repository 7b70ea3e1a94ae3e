"""Command lines: what people type, checked, handed on, and what came of it, printed.

`commands.py` has them all by name: `mq3 NAME …`, `python -m megatron_qwen3 NAME …`, and from a
checkout `python tools/FILE.py …`. One module each: `main(arguments, prog)` gives the exit status.
Nothing below imports this package, but what is a command itself its parser; and nothing here
imports torch before a command needs it.
"""
