"""Penalties that published recipes subtract for length or repetition; no torch here.

overlong(len(tokens), most=1024, falls_over=256)      # 0 to -1
repetition(tokens, size=40)                           # 0 to -1
"""

from collections.abc import Sequence


def overlong(tokens: int, most: int, falls_over: int) -> float:
    """Soft penalty of length (DAPO, arXiv 2503.14476, equation 13).

    0 up to most - falls_over tokens, from there falling linearly to -1 at `most`, and -1 beyond. As
    TRL's get_soft_overlong_punishment; verl's goes on falling beyond `most`.
    ValueError for falls_over outside of 1 to most.
    """
    if not 0 < falls_over <= most:
        raise ValueError(f"falls_over = {falls_over}; valid: 1 to {most}, the most tokens")
    return min(0.0, max(-1.0, (most - falls_over - tokens) / falls_over))


def repetition(ids: Sequence[int], size: int, most: float = -1.0) -> float:
    """(1 - different n-grams / all of them) · most, over token ids; 0 for fewer than `size` ids.

    most: the penalty of an answer that repeats one n-gram for ever, at most 0. As TRL's
    get_repetition_penalty_reward. ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"n-grams of size = {size}; valid: 1 or more")
    grams = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    return (1 - len(set(grams)) / len(grams)) * most or 0.0 if grams else 0.0
