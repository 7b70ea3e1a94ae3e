"""Bradley and Terry's model of pairs (Biometrika 1952): a reward model's loss on two answers.

    objective = over_pairs(centering=0.01)        # of batches that `pair_rows.py` makes
    loss_N = bradley_terry(chosen_N, rejected_N, margin_N)

The chosen answer wins with probability σ(chosen - rejected), where each reward is the model's
number at the last token of its answer. Both answers of a pair lie in one row of a batch, apart as
two documents, so that no micro-batch, rank or row of padding ever parts them: the loss of a pair is
a value at the position where its chosen answer ends, and the engine needs to know nothing of pairs.

Legend: N pairs, B rows, S positions.
"""

import torch.nn.functional as F
from torch import Tensor

from megatron_qwen3.model.outputs import Outputs, scalar
from megatron_qwen3.posttrain.rows.pair_rows import MARGIN, REJECTED
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.objectives import Objective, Values, per_token


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log σ(chosen - rejected - margin) of each pair, in nats, in the rewards' own precision.

    margin: by how much the chosen answer should win at least (Llama 2, arXiv 2307.09288, section
    3.2.2). Equal to TRL's RewardTrainer before its mean.
    """
    return -F.logsigmoid(chosen - rejected - margin)


def off_center(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(chosen + rejected)² of each pair (arXiv 2312.09244, equation 2): pairs say nothing of the
    height of rewards, and this, times a small coefficient, holds them near 0."""
    return (chosen + rejected).square()


def over_pairs(centering: float = 0.0) -> Objective:
    """The mean over the pairs of the global batch of both losses, the second times `centering`.

    Reported beside them: the share of pairs that the model ranks as given, a tie not counted, and
    the mean of chosen - rejected.
    """

    def values(outputs: Outputs, batch: TokenBatch) -> Values:
        chosen_BS = outputs["scalar"]
        rejected_BS = chosen_BS.gather(1, batch.extra[REJECTED])
        named = {
            "bradley_terry": bradley_terry(chosen_BS, rejected_BS, batch.extra[MARGIN]),
            "accuracy": (chosen_BS > rejected_BS).float(),
            "reward_margin": chosen_BS - rejected_BS,
        }
        if centering:
            named["centering"] = centering * off_center(chosen_BS, rejected_BS)
        return named

    losses = ("bradley_terry", "centering") if centering else ("bradley_terry",)
    metrics = ("accuracy", "reward_margin")
    return Objective(
        scalar, values, dict.fromkeys(losses, per_token), dict.fromkeys(metrics, per_token)
    )
