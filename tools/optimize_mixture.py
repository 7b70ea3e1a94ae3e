"""Find a mixture by small runs: python tools/optimize_mixture.py --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a plain checkout
from megatron_qwen3.cli.commands import run

run("data optimize", __name__)
