"""Names the ways of reading beyond the trained length, as settings of the table [rope]. No torch.

    rope = settings_of("dca", trained=32_768, longest=131_072, own=RopeConfig())

One setting reads all lengths, as in use: YaRN's factor and Dual Chunk Attention's are those of the
longest text, and hold for short ones, too. A model that was trained with YaRN has its own: "own"
reads with that, "plain" without it, "dca" keeps its frequencies, and "yarn" and "both" stretch them
further, from the same original length.
"""

import math
from dataclasses import fields, replace

from megatron_qwen3.config import ConfigError
from megatron_qwen3.settings_rope import RopeConfig
from megatron_qwen3.toml import emit
from megatron_qwen3.validate_rope import CHUNK_UNIT

WAYS = ("own", "plain", "yarn", "dca", "both")


def usual(own: RopeConfig) -> tuple[str, ...]:
    """The ways of a model whose table is `own`: its own where that is not plain."""
    return WAYS[1:] if own == RopeConfig() else WAYS


def settings_of(way: str, trained: int, longest: int, own: RopeConfig) -> RopeConfig:
    """The settings of a way. Raises ConfigError for a model too short to cut into chunks.

    Chunks are seven eighths of the trained length, and the rest is kept of the chunk before: more
    than Qwen2.5-1M's thirty-second (arXiv 2501.15383), which is little of a small model's length.
    The length factor of Dual Chunk Attention is YaRN's, unless YaRN's tables have it already.
    """
    if way in ("own", "plain"):
        return own if way == "own" else RopeConfig()
    original = own.yarn_original_length if own.has_yarn else trained
    factor = max(own.yarn_factor, longest / original)
    yarn = {"yarn_factor": factor, "yarn_original_length": original} if factor > 1 else {}
    unchunked = own.without_dca()
    if way == "yarn":
        return replace(unchunked, **yarn)
    chunk = trained * 7 // 8 // CHUNK_UNIT * CHUNK_UNIT
    if trained - chunk > chunk:
        chunk += CHUNK_UNIT
    if chunk >= trained:
        raise ConfigError(
            f"a model of {trained} positions is too short for Dual Chunk Attention; valid: above "
            f"{CHUNK_UNIT}"
        )
    dual = {"dca_chunk_size": trained, "dca_local_size": trained - chunk}
    if way == "both":
        return replace(unchunked, **yarn, **dual)
    scale = 1.0 if own.has_yarn else 0.1 * math.log(factor) + 1
    return replace(unchunked, **dual, dca_scale=scale)


def as_overrides(rope: RopeConfig) -> list[str]:
    """key=value of every setting of the table."""
    return [f"rope.{row.name}={emit(getattr(rope, row.name))}" for row in fields(rope)]
