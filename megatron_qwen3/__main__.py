"""python -m megatron_qwen3 COMMAND …, as `mq3` (`cli/commands.py`)."""

from megatron_qwen3.cli.commands import start

if __name__ == "__main__":
    start()
