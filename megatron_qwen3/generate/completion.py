"""The completion of one prompt, and a row's state while it is generated.

row = GeneratedRow(index, limit, Completion(weights_version=version), thinking)
row.take(token, log_prob, sampled_log_prob, stop_ids, on_token)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from megatron_qwen3.generate.thinking import Thinking

OnToken = Callable[[int, int, bool], None]  # row, token, whether it was inserted


@dataclass
class Completion:
    """The tokens generated after one prompt, the stop token included.

    log_probs: log p(token) under the model alone, before temperature and penalties.
    sampled_log_probs: log p of the logits divided by the temperature, before penalties and before
    top_k, top_p and min_p cut. Another pass over the same text can be compared with them, where
    probabilities of two sets of weights form a ratio. At temperature 0 equal to log_probs.
    inserted: True where a thinking budget put the token; such tokens must not be trained.
    finish_reason: "stop" after a stop token, "length" at the row's limit.
    weights_version: `Model.weights_version` of the weights that wrote it.
    """

    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    sampled_log_probs: list[float] = field(default_factory=list)
    inserted: list[bool] = field(default_factory=list)
    finish_reason: str = ""
    weights_version: int = 0


@dataclass
class GeneratedRow:
    """A row that is being generated; limit: most tokens."""

    index: int
    limit: int
    completion: Completion
    thinking: Thinking | None

    def __post_init__(self) -> None:
        self._end_at_limit()

    @property
    def is_done(self) -> bool:
        return bool(self.completion.finish_reason)

    def forced(self) -> int | None:
        """The token that must come next; None where the model chooses."""
        return self.thinking.forced() if self.thinking else None

    def take(
        self,
        token: int,
        log_prob: float,
        sampled_log_prob: float,
        stop_ids: Sequence[int],
        on_token: OnToken | None,
    ) -> None:
        """Add a chosen or forced token; a row that is done ignores it."""
        if self.is_done:
            return
        inserted = self.forced() is not None
        self.completion.tokens.append(token)
        self.completion.log_probs.append(log_prob)
        self.completion.sampled_log_probs.append(sampled_log_prob)
        self.completion.inserted.append(inserted)
        if self.thinking:
            self.thinking.saw(token)
        if token in stop_ids and not inserted:
            self.completion.finish_reason = "stop"
        self._end_at_limit()
        if on_token:
            on_token(self.index, token, inserted)

    def _end_at_limit(self) -> None:
        if not self.is_done and len(self.completion.tokens) >= self.limit:
            self.completion.finish_reason = "length"
