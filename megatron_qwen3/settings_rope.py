"""The table [rope]: how positions reach beyond the length that a model was trained with.

`model.rope_theta` is the base of the rotary embedding (ABF is another base) and stands with the
model. These settings change the result of attention, so they go with a checkpoint and are the same
in training, scoring and generation; no weight depends on them. Nothing here imports torch.
"""

import math
from dataclasses import dataclass, fields, replace

from megatron_qwen3.fields import setting

MOST_POSITIONS = 1 << 31


@dataclass(frozen=True)
class RopeConfig:
    """Reading longer texts than were trained: YaRN (arXiv 2309.00071) and Dual Chunk Attention."""

    yarn_factor: float = setting(
        1.0,
        "times yarn_original_length that positions are stretched to; 1 is plain. It holds for "
        "short texts, too",
        at_least=1,
        below=1 << 20,
    )
    yarn_original_length: int = setting(
        0,
        "positions that the model was trained with before; needed by YaRN",
        at_least=0,
        below=MOST_POSITIONS,
    )
    yarn_beta_fast: float = setting(
        32.0, "turns within the original length from which on a pair is left as it is", above=0
    )
    yarn_beta_slow: float = setting(
        1.0, "turns within the original length below which a pair is slowed by the factor", above=0
    )
    yarn_truncate: bool = setting(True, "round the bounds of these pairs to whole pairs")
    yarn_attention_factor: float = setting(
        0.0, "factor on queries and on keys; 0 is 0.1 ln(yarn_factor) + 1", at_least=0
    )
    dca_chunk_size: int = setting(
        0,
        "Dual Chunk Attention (arXiv 2402.17463): largest distance that attention meets, at most "
        "the length that was trained; 0 is plain attention. Training has it as generation does",
        at_least=0,
        below=MOST_POSITIONS,
    )
    dca_local_size: int = setting(
        0,
        "of it, the part for keys of the chunk before; chunks are dca_chunk_size - "
        "dca_local_size long",
        at_least=0,
    )
    dca_rule: str = setting(
        "code",
        "largest distance: dca_chunk_size as Qwen's inference has it, or one less as the paper",
        choices=("code", "paper"),
    )
    dca_scale: float = setting(
        1.0, "length factor of the whole run: scores are multiplied by its square", above=0
    )

    @property
    def yarn_length(self) -> int:
        """Positions that YaRN reaches; 0 without it."""
        return round(self.yarn_factor * self.yarn_original_length)

    @property
    def has_yarn(self) -> bool:
        """Whether frequencies are other than the base's."""
        return self.yarn_factor != 1

    @property
    def attention_factor(self) -> float:
        """YaRN's factor on queries and on keys, so that scores have its square; its section 3.4."""
        if not self.has_yarn:
            return 1.0
        return self.yarn_attention_factor or 0.1 * math.log(self.yarn_factor) + 1.0

    @property
    def has_dca(self) -> bool:
        """Whether attention is Dual Chunk Attention."""
        return self.dca_chunk_size > 0

    def without_dca(self) -> "RopeConfig":
        """The same frequencies with plain attention."""
        usual = RopeConfig()
        names = [field.name for field in fields(self) if field.name.startswith("dca_")]
        return replace(self, **{name: getattr(usual, name) for name in names})
