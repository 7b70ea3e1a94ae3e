"""Reinforcement learning: rollouts, rewards, advantages, updates. run.mode = "rl".

    python -m megatron_qwen3.train examples/stages/post_2_reasoning_rl.toml MODEL.toml

A step is an optimizer update. Before the first one of a batch the policy answers tasks
(`rollouts/`), answers are rewarded (`rewards/`), and the record of both is written to the run
folder; each update trains its share of the record (`policy/`). So an update is a function of the
record and of the weights, and a run that was killed anywhere goes on to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from megatron_qwen3.convert import load
from megatron_qwen3.launcher import world_size
from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.posttrain.policy.objective import (
    ADVANTAGE,
    OLD,
    REFERENCE,
    SAMPLER,
    policy_objective,
    trained_answers,
)
from megatron_qwen3.posttrain.policy.rejection import without_rejected
from megatron_qwen3.posttrain.rewards.rewards import Rewards
from megatron_qwen3.posttrain.rollouts import asking, before, told
from megatron_qwen3.posttrain.rollouts.asking import Source
from megatron_qwen3.posttrain.rollouts.batches import advantages_of
from megatron_qwen3.posttrain.rollouts.maker import Maker
from megatron_qwen3.posttrain.rollouts.record import Array, Record
from megatron_qwen3.posttrain.rollouts.rows import Rows
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.training import origin, tokenizer_check
from megatron_qwen3.training.bad_batch import BadBatch
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.run import Run

world_size, Iterator, dataclass, np, time  # noqa: B018
