"""Top-k router in float32 with the global-batch load-balancing loss.

The loss per layer is E · Σ_e f_e · P_e (Switch Transformer, arXiv 2101.03961, eq. 4): f_e the
share of the global batch's choices that fell on expert e (constant in the gradient), P_e the mean
router probability of e over the global batch (arXiv 2501.11873: balance over the global batch, not
the micro-batch, lets experts specialise).

megatron-core's form of it counts f_e over the micro-batches seen so far and scales the gradient by
1/DP twice, so that its gradient depends on the layout. Here f_e is known before the first
micro-batch, and P_e is normalised by the positions of the whole step: every micro-batch adds its
exact share of one gradient, whatever the layout, accumulation or recomputation. One small
all-reduce per step replaces one per layer and micro-batch. model.router_balance says which f_e:

- "last_step": of the whole step before, which costs nothing; the first step, with no counts yet,
  takes it uniform. The gradient is near the exact one where batches are alike, and points elsewhere
  where each is of another domain.
- "this_batch": of the very batch, counted with the same weights in a forward pass without gradients
  before the step: the loss of arXiv 2501.11873 to the letter.
- "micro_batch": of each micro-batch on its own, as in most trainers, for comparison with the global
  batch. The gradient then depends on train.micro_batch.

Legend: T tokens of this rank, E experts, K experts per token, H hidden.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_qwen3.parallel.mcore import MegatronModule, TransformerConfig


class _AddToLoss(torch.autograd.Function):
    """Identity on `x` whose backward adds the gradient of `extra` to that of the step's loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, extra: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor) -> tuple[Tensor, Tensor]:
        return grad_x, grad_x.new_ones(())


class Router(MegatronModule):
    """Chooses K of E experts per token.

    Call `begin_step` and `end_step` around a step; before it, for shares of the step's own batch,
    `begin_counting` and a pass in evaluation mode.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.num_experts: int = config.num_moe_experts
        self.experts_per_token = config.moe_router_topk
        self.coefficient: float = config.moe_aux_loss_coeff
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        shape = (self.num_experts, config.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        uniform = torch.full((self.num_experts,), 1 / self.num_experts, device=device)
        self.register_buffer("expert_share", uniform)  # of the choices of the last step
        self.register_buffer("step_share", uniform.clone(), False)  # f_e of the running step
        # This rank's choices and probabilities per expert in the running step.
        self.register_buffer("sums", torch.zeros(2, self.num_experts, device=device), False)
        # On the device, like all values that change between steps, so that graphs read them anew.
        self.register_buffer("step_positions", torch.ones((), device=device), False)
        self.counting = False
        self.of_micro_batch = False

    def begin_counting(self) -> None:
        """Until the step begins, passes in evaluation mode count choices."""
        self.counting = True
        self.sums.zero_()

    def begin_step(
        self, positions: float, counts_E: Tensor | None = None, of_micro_batch: bool = False
    ) -> None:
        """positions: number in the global batch, without padding.

        `counts_E`: choices that the loss takes f_e from; None is the share of the last step, or,
        where `of_micro_batch`, that of each micro-batch.
        """
        self.counting, self.of_micro_batch = False, of_micro_batch
        self.step_positions.fill_(positions)
        share_E = self.expert_share if counts_E is None else counts_E / counts_E.sum()
        self.step_share.copy_(share_E)
        self.sums.zero_()

    def end_step(self, sums_2E: Tensor) -> None:
        """sums_2E: `self.sums` added up over all ranks that routed this layer's tokens.

        A step that routed none leaves the share as it is.
        """
        total = sums_2E[0].sum()
        self.expert_share.copy_(torch.where(total > 0, sums_2E[0] / total, self.expert_share))

    def forward(self, hidden_TH: Tensor, valid_T: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Probabilities (float32, each row adds up to one) and experts (int64), both [T, K].

        Padding, where `valid_T` is False, is routed like text, and does not count in the
        balance.
        """
        logits_TE = F.linear(hidden_TH.float(), self.weight.float())
        all_probs_TE = logits_TE.softmax(-1)
        chosen_TK, experts_TK = all_probs_TE.topk(self.experts_per_token, dim=-1)
        probs_TK = chosen_TK / chosen_TK.sum(-1, keepdim=True)
        if self.counting and not self.training:
            self._count(experts_TK, valid_T)
        # Recomputed layers run once without gradients; only the run with them counts.
        if self.training and torch.is_grad_enabled():
            probs_TK = self._balance(probs_TK, all_probs_TE, experts_TK, valid_T)
        return probs_TK, experts_TK

    def _balance(
        self, probs_TK: Tensor, all_probs_TE: Tensor, experts_TK: Tensor, valid_T: Tensor | None
    ) -> Tensor:
        if valid_T is not None:
            all_probs_TE = all_probs_TE.where(valid_T[:, None], 0.0)
        prob_sum_E = all_probs_TE.sum(0)
        with torch.no_grad():
            counts_E = self._count(experts_TK, valid_T)
            self.sums[1] += prob_sum_E
            own_E = counts_E / counts_E.sum().clamp(min=1)
            share_E = own_E if self.of_micro_batch else self.step_share
        share_of_mean_E = prob_sum_E / self.step_positions
        loss = self.num_experts * (share_E * share_of_mean_E).sum()
        return _AddToLoss.apply(probs_TK, self.coefficient * loss)

    def _count(self, experts_TK: Tensor, valid_T: Tensor | None) -> Tensor:
        """How often each expert was chosen here, which is added up; up to 2^24 exact in float32.

        Not by bincount, which waits for a GPU to learn how long its result is.
        """
        ones_TK = torch.ones_like(experts_TK, dtype=torch.float32)
        if valid_T is not None:
            ones_TK = ones_TK.mul_(valid_T[:, None])
        counts_E = torch.zeros_like(self.sums[0])
        counts_E.scatter_add_(0, experts_TK.flatten(), ones_TK.flatten())
        self.sums[0] += counts_E
        return counts_E


def balance_metrics(
    sums_L2E: Tensor, positions: float, last_share_LE: Tensor | None
) -> dict[str, Tensor]:
    """Balance metrics of L layers in a step of `positions` positions, from `Router.sums`.

    aux_loss: mean over layers of E · Σ f_e P_e, f_e of this very batch (1 = balanced);
    aux_loss_last_step: the same with f_e of the step before, `last_share_LE`, if that was trained;
    absent where aux_loss was;
    expert_balance: mean over layers of the busiest expert's load over the mean load (1 = even);
    idle_experts: share of experts without a token.
    """
    counts_LE, prob_sums_LE = sums_L2E[:, 0], sums_L2E[:, 1]
    share_LE = counts_LE / counts_LE.sum(-1, keepdim=True)
    num_experts = counts_LE.shape[-1]
    shares = {"aux_loss": share_LE}
    if last_share_LE is not None:
        shares["aux_loss_last_step"] = last_share_LE
    mean_prob_LE = prob_sums_LE / positions
    return {
        name: num_experts * (f_LE * mean_prob_LE).sum(-1).mean() for name, f_LE in shares.items()
    } | {
        "expert_balance": (share_LE.max(-1).values * num_experts).mean(),
        "idle_experts": (counts_LE == 0).float().mean(),
    }
