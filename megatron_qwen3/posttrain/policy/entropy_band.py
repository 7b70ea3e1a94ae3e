"""Keeps the policy's entropy in a band by adjusting its coefficient in the objective.

    coefficient = next_coefficient(coefficient, metrics["entropy"], config.rl.entropy)

A policy whose entropy falls to 0 has stopped exploring. The coefficient rises in equal steps while
the entropy is below rl.entropy.low, and falls while it is above rl.entropy.high, as in Skywork-OR1
(arXiv 2505.22312). The other remedy is clip-higher, rl.loss.clip_high > clip_low (DAPO, arXiv
2503.14476), which needs no state. No torch here.
"""

from megatron_qwen3.settings_rl import EntropyConfig


def next_coefficient(coefficient: float, entropy: float, settings: EntropyConfig) -> float:
    """The coefficient of the next update, between 0 and settings.most where it changes.

    entropy: mean over the tokens of this update, in nats. Without a band the coefficient stays.
    """
    if entropy < settings.low:
        return min(settings.most, coefficient + settings.change)
    if settings.high and entropy > settings.high:
        return max(0.0, coefficient - settings.change)
    return coefficient
