"""Checks the settings of [rope]: one line per fault, as `validate.py` does the others.

`notes` lists settings that are no fault, but hardly meant.
"""

import math
from collections.abc import Iterator

from megatron_qwen3.fields import settings_of
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_rope import RopeConfig
from megatron_qwen3.toml import emit

CHUNK_UNIT = 16  # places: servers hold keys and values in blocks of as many


def faults(config: Config) -> Iterator[str]:
    """Faults of the table, alone and with other tables."""
    rope = config.rope
    if rope.has_yarn:
        yield from _yarn_faults(rope, config.model.rope_theta)
    else:
        yield from _left_over(rope, "yarn_", "rope.yarn_factor = 1 is plain; set it above 1")
    if not rope.has_dca:
        yield from _left_over(rope, "dca_", "rope.dca_chunk_size = 0 is plain attention; set it")
        return
    yield from _chunk_faults(rope)
    yield from _scale_faults(rope)
    if config.rollouts.engine == "vllm" and config.run.mode in ("rl", "distill"):
        yield (
            f'rollouts.engine = "vllm" with rope.dca_chunk_size = {rope.dca_chunk_size}: vLLM has '
            'no Dual Chunk Attention; set rollouts.engine = "own", or rope.dca_chunk_size = 0'
        )


def notes(rope: RopeConfig, length: int) -> Iterator[str]:
    """Odd settings for texts of `length` positions, a line each."""
    if rope.has_yarn and rope.yarn_length < length:
        factor = length / rope.yarn_original_length
        yield (
            f"rope.yarn_factor = {rope.yarn_factor:g} times rope.yarn_original_length = "
            f"{rope.yarn_original_length:,} reaches {rope.yarn_length:,} positions, fewer than "
            f"{length:,}; rope.yarn_factor = {factor:g} reaches them"
        )
    if rope.has_dca and rope.dca_chunk_size >= length:
        yield (
            f"rope.dca_chunk_size = {rope.dca_chunk_size:,}: within {length:,} positions attention "
            "is plain, as no distance exceeds it"
        )


def _left_over(rope: RopeConfig, prefix: str, way_out: str) -> Iterator[str]:
    for name, row in settings_of(RopeConfig).items():
        value = getattr(rope, name)
        if name.startswith(prefix) and value != row.default:
            shown, default = emit(value), emit(row.default)
            yield f"rope.{name} = {shown}, but {way_out}, or this back to {default}"


def _yarn_faults(rope: RopeConfig, theta: float) -> Iterator[str]:
    if not rope.yarn_original_length:
        yield (
            f"rope.yarn_factor = {rope.yarn_factor:g} needs rope.yarn_original_length, the length "
            "that the model was trained with before YaRN (Qwen3: 32768)"
        )
    elif rope.yarn_original_length <= 2 * math.pi * rope.yarn_beta_slow:
        yield (
            f"rope.yarn_original_length = {rope.yarn_original_length} must be above 2π times "
            f"rope.yarn_beta_slow = {rope.yarn_beta_slow:g}: no pair turns so often within it"
        )
    if theta <= 1:
        yield (
            f"model.rope_theta = {theta:g} must be above 1 with rope.yarn_factor = "
            f"{rope.yarn_factor:g}: all pairs turn alike"
        )
    if rope.yarn_beta_fast <= rope.yarn_beta_slow:
        yield (
            f"rope.yarn_beta_fast = {rope.yarn_beta_fast:g} must be above rope.yarn_beta_slow = "
            f"{rope.yarn_beta_slow:g}; YaRN has 32 and 1"
        )


def _chunk_faults(rope: RopeConfig) -> Iterator[str]:
    size, local = rope.dca_chunk_size, rope.dca_local_size
    chunk = size - local
    sizes = f"rope.dca_chunk_size = {size} and rope.dca_local_size = {local}"
    if local < 1 or local > chunk:
        yield (
            f"{sizes} make chunks of {chunk} places; the local size must be at least 1 and not "
            f"exceed them; valid: {_local_sizes(size)}"
        )
    elif chunk % CHUNK_UNIT:
        yield (
            f"{sizes} make chunks of {chunk} places, which must be a multiple of {CHUNK_UNIT}; "
            f"valid: {_local_sizes(size)}"
        )


def _local_sizes(size: int) -> str:
    """The local sizes that go with a chunk size, as text."""
    largest = (size - 1) // CHUNK_UNIT * CHUNK_UNIT  # chunk
    smallest = -(-size // (2 * CHUNK_UNIT)) * CHUNK_UNIT
    if largest < smallest:
        return f"a dca_chunk_size of {2 * CHUNK_UNIT} or more"
    first, last = size - largest, size - smallest
    if first == last:
        return f"a dca_local_size of {first}"
    return f"a dca_local_size of {first} to {last} in steps of {CHUNK_UNIT}"


def _scale_faults(rope: RopeConfig) -> Iterator[str]:
    """Qwen's length factor and YaRN's attention factor are two answers to one question."""
    if rope.dca_scale != 1 and rope.has_yarn and rope.yarn_attention_factor != 1:
        yield (
            f"rope.dca_scale = {rope.dca_scale:g} and rope.yarn_factor = {rope.yarn_factor:g} both "
            "scale the scores; set rope.dca_scale = 1, or rope.yarn_attention_factor = 1"
        )
