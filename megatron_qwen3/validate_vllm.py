"""Checks settings of rollouts.vllm: one line per fault, as `validate.py` does the others."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from megatron_qwen3.fields import settings_of
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_rollouts import VllmConfig

LEAST_LENGTH = 48  # of a row: a block of 32 tokens, and some that are compared
_TABLE = "rollouts.vllm"
_MANAGED = (  # options of vllm serve that the run decides
    *("--host", "--port", "--model", "--served-model-name", "--dtype", "--max-model-len"),
    *("--logprobs-mode", "--worker-extension-cls", "--load-format", "--kv-cache-memory-bytes"),
)


def faults(config: Config) -> Iterator[str]:
    """Faults of the table, where run.mode has it."""
    vllm = config.rollouts.vllm
    if config.rollouts.engine != "vllm":
        for name in settings_of(VllmConfig):
            if getattr(vllm, name) != getattr(VllmConfig(), name):
                yield (
                    f"{_TABLE}.{name} = {getattr(vllm, name)} goes with rollouts.engine = "
                    f'"vllm", not "{config.rollouts.engine}"'
                )
        return
    yield from _server_faults(vllm)
    yield from _option_faults(vllm)
    if vllm.refit == "nccl" and config.run.device == "cpu":
        yield (
            f'{_TABLE}.refit = "nccl" is between GPUs, and run.device = "cpu"; valid: folder, gloo'
        )
    rope, length = config.rope, config.data.sequence_length
    if rope.has_yarn and length > rope.yarn_length:
        yield (
            f"data.sequence_length = {length} exceeds rope.yarn_factor * yarn_original_length = "
            f"{rope.yarn_factor:g} * {rope.yarn_original_length} = {rope.yarn_length}, the most "
            'that rollouts.engine = "vllm" takes'
        )
    if config.data.sequence_length < LEAST_LENGTH:
        yield (
            f"data.sequence_length = {config.data.sequence_length} is too short for the prompts "
            f'that servers are checked with; rollouts.engine = "vllm" needs {LEAST_LENGTH}'
        )


def _server_faults(vllm: VllmConfig) -> Iterator[str]:
    if vllm.urls:
        for name in ("python", "servers", "gpus", "options", "cache_bytes"):
            if getattr(vllm, name) != getattr(VllmConfig(), name):
                yield (
                    f"{_TABLE}.{name} = {getattr(vllm, name)} is of servers that the run starts, "
                    f"and {_TABLE}.urls names some that run already; leave one of them out"
                )
    for url in vllm.urls:
        if not _is_address(url):
            yield f'{_TABLE}.urls: "{url}" is no address of a server; valid: http://HOST:PORT'
    if vllm.gpus and len(vllm.gpus) != vllm.servers:
        yield (f"{_TABLE}.gpus has {len(vllm.gpus)} entries, but {_TABLE}.servers = {vllm.servers}")


def _option_faults(vllm: VllmConfig) -> Iterator[str]:
    for option in vllm.options:
        name = option.partition("=")[0]
        if not name.startswith("--"):
            yield f'{_TABLE}.options: "{option}" is no option; valid: --NAME or --NAME=VALUE'
        elif name in _MANAGED:
            yield f"{_TABLE}.options: {name} is set by the run; leave it out"


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and bool(parts.port)
    except ValueError:
        return False
