"""`python`: the interpreter of an environment with vLLM, which is none of these tests' own."""

import os
from pathlib import Path

import pytest

PYTHON = "MQ3_VLLM_PYTHON"
_BESIDE_THE_MAKEFILE = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"


@pytest.fixture(scope="session")
def python():
    found = os.environ.get(PYTHON, str(_BESIDE_THE_MAKEFILE))
    if not Path(found).is_file():
        pytest.skip(
            f"{found} is not there: make test-vllm installs vLLM, or {PYTHON} names its python"
        )
    return found
