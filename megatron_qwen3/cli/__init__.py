"""Command lines: each checks a person's arguments, hands them on, and prints the results.

`commands.py` has them all by name: `mq3 NAME …`, `python -m megatron_qwen3 NAME …`, and from a
checkout `python tools/FILE.py …`. One module each: `main(arguments, prog)` gives the exit status.
Nothing below imports this package, except that a module which is a command takes its parser; and
nothing here imports torch before a command needs it.
"""
