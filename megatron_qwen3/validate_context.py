"""Checks the exchange between context ranks: one line per fault, as `validate.py`.

Ours takes all rows, documents and models. Transformer Engine's are megatron-core's cp_comm_type;
its a2a+p2p needs two levels of context ranks, which no layout here has.
"""

import math
from collections.abc import Iterator

from megatron_qwen3.settings import Config


def faults(config: Config) -> Iterator[str]:
    """Conflicts of the chosen exchange with other settings, each with the way out."""
    parallel = config.parallel
    if parallel.context_exchange == "own":
        return
    given = f'parallel.context_exchange = "{parallel.context_exchange}"'
    ours = 'parallel.context_exchange = "own"'
    if parallel.context == 1:
        yield f"{given}, but parallel.context = 1: no ranks share a row; set {ours}"
    if config.model.kind != "te":
        yield (
            f'{given} is Transformer Engine\'s, and model.kind = "{config.model.kind}"; set '
            f'model.kind = "te" or {ours}'
        )
    if config.train.precision != "bf16":
        yield (
            f'{given} has no kernel for train.precision = "{config.train.precision}"; set "bf16" '
            f"or {ours}"
        )
    if config.rope.dca_chunk_size:
        yield (
            f"{given} knows no chunks, and rope.dca_chunk_size = {config.rope.dca_chunk_size}; set "
            f"{ours}"
        )
    if parallel.virtual_pipeline > 1:
        yield (
            f"{given} makes rows of several lengths, which parallel.virtual_pipeline = "
            f"{parallel.virtual_pipeline} does not take; set that to 1, or {ours}"
        )
    if parallel.context_exchange == "a2a":
        yield from _head_faults(config, f"{given} gives heads for places")


def _head_faults(config: Config, given: str) -> Iterator[str]:
    """Each context rank gets as many heads; cuDNN takes even numbers of them before that."""
    model, parallel = config.model, config.parallel
    unit = math.lcm(parallel.context, 2)
    for name in ("num_attention_heads", "num_query_groups"):
        heads = getattr(model, name)
        if heads % parallel.tensor == 0 and heads // parallel.tensor % unit:
            yield (
                f"{given}: model.{name} / parallel.tensor = {heads} / {parallel.tensor} is no "
                f"multiple of {unit}, which parallel.context = {parallel.context} needs; use "
                '"all_gather" or "p2p"'
            )
