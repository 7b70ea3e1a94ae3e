"""Checks after each refit, by two fixed prompts, that a server computes as the model in training.

    prompts = prompts_of(config)
    answers = ask(client, prompts, temperature)                  # on the first rank
    differences(model, prompts, [answers, …], temperature)       # on all ranks; one per server

A server can receive all weights and still compute with others: experts that were packed again or
not, a head that is tied, a prompt cached under earlier weights. The prompts are longer than a block
of the cache and the server has read them before, so that a stale cache shows.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from megatron_qwen3.model.distributions import log_probs_and_entropy
from megatron_qwen3.parallel.layout import row_unit
from megatron_qwen3.posttrain.rollouts.vllm_client import Client, Died, TokenDraw
from megatron_qwen3.settings import Config
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.model import Model

PROMPTS, TOKENS, PROMPT_TOKENS = 2, 8, 160
_SEED = 20
Answer = tuple[list[int], list[float]]  # tokens, and the server's log-probability of each


def prompts_of(config: Config) -> list[list[int]]:
    """Two prompts, equal in every run with the same vocabulary."""
    length = min(PROMPT_TOKENS, config.data.sequence_length - TOKENS)
    random = np.random.default_rng(_SEED)
    ids = random.integers(config.model.vocab_size, size=(PROMPTS, length))
    return [[int(token) for token in row] for row in ids]


def ask(
    client: Client, prompts: Sequence[Sequence[int]], temperature: float, tokens: int = TOKENS
) -> list[Answer]:
    """A server's answers of `tokens` tokens to each prompt, at the rollouts' temperature. Died
    where it does not answer."""
    draw = TokenDraw(temperature, _SEED, 1, tokens, ())
    with ThreadPoolExecutor(len(prompts)) as pool:
        made = list(pool.map(lambda prompt: client.generate(prompt, draw), prompts))
    if short := [len(drawn.tokens) for (drawn,) in made if len(drawn.tokens) < tokens]:
        length = len(prompts[0]) + tokens
        raise Died(
            f"{client.url} gave {short[0]} of {tokens} tokens; does its --max-model-len allow "
            f"prompt and answer of {length}?"
        )
    return [(drawn.tokens, drawn.log_probs) for (drawn,) in made]


def differences(
    model: Model,
    prompts: Sequence[Sequence[int]],
    of_servers: Sequence[Sequence[Answer]],
    temperature: float,
) -> list[float]:
    """Each server's largest difference of log-probabilities; all ranks call it."""
    rows = [
        [*prompt, *tokens]
        for answers in of_servers
        for prompt, (tokens, _) in zip(prompts, answers, strict=True)
    ]
    length, width = len(prompts[0]), len(rows[0]) - 1
    padding = [0] * (-width % row_unit(model.config.parallel, model.config.fp8)[0])
    ids_BS = torch.tensor([[*row, *padding] for row in rows])
    batch = TokenBatch.of(ids_BS[:, :-1], ids_BS[:, 1:])
    scored_BS = model.score(batch, log_probs_and_entropy(temperature))["log_prob"]
    ours_BS = scored_BS[:, length - 1 : width].cpu().double()
    theirs_BS = torch.tensor(
        [log_probs for answers in of_servers for _, log_probs in answers], dtype=torch.float64
    )
    off_B = (ours_BS - theirs_BS).abs().amax(1)
    return [float(x) for x in off_B.view(len(of_servers), -1).amax(1)]
