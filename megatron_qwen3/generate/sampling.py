"""Settings of sampling: `Sampling(temperature=0.6, top_p=0.95, top_k=20)`.

`sampler.py` applies them. Nothing here imports torch.
"""

from dataclasses import dataclass
from math import inf, isfinite

from megatron_qwen3.config import ConfigError


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling. ConfigError where a value is out of range.

    temperature          0 takes the likeliest token and ignores top_k, top_p and min_p
    top_k                keep the k likeliest tokens and ties with the last; 0 = all
    top_p                keep the likeliest tokens that together reach this probability
    min_p                keep tokens at least this times as likely as the likeliest
    repetition_penalty   divides positive and multiplies negative logits of tokens in the prompt
                         or the text so far (arXiv 1909.05858, section 4.1); 1 = off
    presence_penalty     subtracted from logits of tokens in the text so far, once each; 0 = off
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, valid, range_ in (
            ("temperature", 0 <= self.temperature < inf, "at least 0, finite"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < inf, "above 0, finite"),
            ("presence_penalty", isfinite(self.presence_penalty), "any finite number"),
        ):
            if not valid:
                raise ConfigError(f"{name} = {getattr(self, name)}; valid: {range_}")


# From the Qwen3 technical report, section 4.6 (arXiv 2505.09388).
THINKING = Sampling(temperature=0.6, top_p=0.95, top_k=20)
NOT_THINKING = Sampling(temperature=0.7, top_p=0.8, top_k=20, presence_penalty=1.5)
