"""Seconds of one layer for one micro-batch on one rank, part by part, forward and backward.

    forward, backward = LayerTimer(job, cluster, constants).layer(0)

Device time is the sum of matrix products (FLOPs over the share of the peak that their shape
reaches), attention, element-wise kernels (bytes over memory bandwidth) and communication that is
not hidden. The host launches kernels at the same time, at its own pace. Backward costs two products
for each one of forward, attention two and a half (FlashAttention-2, arXiv 2307.08691, section 3.1).
Letters: h hidden, a = heads · head_dim, k = groups · head_dim.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_qwen3.planner import activations, network
from megatron_qwen3.planner.architecture import Matrix
from megatron_qwen3.planner.hardware import HOST_LINK_GB_PER_S, Cluster
from megatron_qwen3.planner.job import Job

Constants = Mapping[str, float]
_KERNELS = {"bf16": "bf16", "fp32": "bf16", "fp8": "fp8", "mxfp8": "fp8", "nvfp4": "fp4"}
_SHORT_SEQUENCE = 1024  # positions at which attention reaches half its rate
# Watts per TFLOP/s of the chip to which a generation's efficiencies refer (A100, H100, GB200), and
# the greatest gain of a chip with more watts.
_WATTS_PER_TFLOP = {"ampere": 1.28, "hopper": 0.707, "blackwell": 0.48}
_MOST_BY_POWER = 1.15
_WIDE_HEAD = 128  # narrower heads leave multipliers idle


@dataclass(frozen=True)
class Pass:
    """Seconds of one pass through one layer, by activity; `launch` is the host's, and `proxies` the
    time of its threads that send tokens, for which all else waits."""

    gemm: float = 0.0
    attention: float = 0.0
    experts: float = 0.0
    elementwise: float = 0.0
    exchange: float = 0.0
    proxies: float = 0.0
    tensor: float = 0.0
    context: float = 0.0
    host: float = 0.0
    launch: float = 0.0

    @property
    def device(self) -> float:
        """Seconds that the device is busy."""
        parts = (self.gemm, self.attention, self.experts, self.elementwise)
        return sum(parts) + self.exchange + self.tensor + self.context + self.host

    def total(self, concurrency: float) -> float:
        """Device and host work in parallel: the norm of both times; both wait for proxies."""
        p = concurrency
        return float((self.device**p + self.launch**p) ** (1 / p)) + self.proxies

    def plus(self, other: "Pass") -> "Pass":
        """The sum, part by part."""
        mine, theirs = vars(self), vars(other)
        return Pass(**{name: mine[name] + theirs[name] for name in mine})


class LayerTimer:
    """Prices the layers of a job on a cluster."""

    def __init__(self, job: Job, cluster: Cluster, constants: Constants) -> None:
        self.job, self.cluster, self.c = job, cluster, constants
        self.layout, self.model = job.layout, job.model
        self.tokens = float(job.micro_batch_tokens)  # positions of attention and matrices
        self.share = self.tokens / job.layout.tensor  # positions of this rank between them
        self.is_low = job.precision in ("fp8", "mxfp8", "nvfp4")
        power = cluster.watts_per_tflop / _WATTS_PER_TFLOP[cluster.generation]
        self.clocks = min(math.pow(power, constants["power"]), _MOST_BY_POWER)
        self.memory_rate = 1e9 * cluster.memory_gb_per_s * constants["memory"]

    def layer(self, layer: int) -> tuple[Pass, Pass]:
        """Forward and backward of one layer."""
        sparse = self.model.is_sparse(layer)
        load = self.load
        dense, experts = self._products(sparse)
        once = Pass(
            gemm=dense,
            attention=self._attention_seconds(layer),
            experts=load * experts,
            elementwise=self._elementwise(sparse, load),
            exchange=load * 2 * self.exchange_seconds() * self._exposed if sparse else 0.0,
            proxies=load * 2 * self.proxy_seconds() * self._exposed if sparse else 0.0,
        )
        launch = self._launch(sparse)
        tensor = self.c["tensor_exposed"] * self.tensor_seconds(sparse)
        context, context_backward = (self.context_shown * x for x in self.context_seconds())
        beside = Pass(tensor=2 * tensor, context=context, launch=launch / 3)
        # Backward gathers the input of column-parallel matrices once more.
        beside_backward = Pass(tensor=3 * tensor, context=context_backward, launch=2 * launch / 3)
        backward = Pass(
            gemm=2 * once.gemm,
            attention=2.5 * once.attention,
            experts=2 * once.experts,
            elementwise=2 * once.elementwise,
            exchange=once.exchange,
            proxies=once.proxies,
        )
        again = self._recomputed(once, sparse)
        passes = once.plus(beside), backward.plus(beside_backward).plus(again)
        forward, back = (one.plus(Pass(host=self._host_shown(layer, one))) for one in passes)
        return forward, back

    def _host_shown(self, layer: int, one: Pass) -> float:
        """Seconds by which moving a layer's activations to or from the host exceeds the layer's
        own time."""
        moved = activations.offloaded_bytes(self.job, layer)
        seconds = moved / (1e9 * HOST_LINK_GB_PER_S[self.cluster.host])
        return max(0.0, seconds - one.device)

    def product(self, rows: float, outputs: float, inputs: float, precision: str) -> float:
        """Seconds of [rows, inputs] · [inputs, outputs]: small dimensions reach less of the peak,
        the more so the faster the arithmetic."""
        peak = self.cluster.peak_flops(precision)
        half = self.c["half_dimension"] * math.sqrt(peak / 1e15)
        reached = float(self.c[f"gemm_{self.cluster.generation}_{_KERNELS[precision]}"])
        reached *= self.clocks
        if self.job.early_software:
            reached *= self.c["early_software"]
        for size in (rows, outputs, inputs):
            reached *= size / (size + half)
        return 2.0 * rows * outputs * inputs / (peak * reached)

    def logits(self) -> float:
        """Forward seconds of the output layer and the loss, in bf16."""
        if self.model.scalar_head:  # it reads the hidden states, and little else
            return 6 * self.tokens * self.model.hidden_size / self.memory_rate
        local_vocab = self.model.vocab_size / self.layout.tensor
        product = self.product(self.tokens, local_vocab, self.model.hidden_size, "bf16")
        return product + 6 * self.tokens * local_vocab / self.memory_rate

    def exchange_seconds(self) -> float:
        """Seconds of one of a layer's four exchanges of tokens, hidden or not."""
        if self.layout.expert * self.layout.expert_tensor == 1:
            return 0.0
        return network.exchange_seconds(self.job, self.cluster, self.c)

    def proxy_seconds(self) -> float:
        """Seconds of one of the four exchanges that the host's threads spend on sending."""
        if self.layout.expert == 1:
            return 0.0
        return network.proxy_seconds(self.job, self.cluster, self.c)

    def tensor_seconds(self, sparse: bool) -> float:
        """Seconds of one gather or scatter per block of a layer over the tensor ranks, hidden or
        not."""
        tp = self.layout.tensor
        if tp == 1:
            return 0.0
        blocks = 1 if sparse and not self.model.shared_ffn_hidden_size else 2
        moved = self.tokens * self.model.hidden_size * 2 * (tp - 1) / tp
        return blocks * moved / network.rate(tp, 1, self.cluster, self.c)

    def context_seconds(self) -> tuple[float, float]:
        """Seconds to exchange keys and values of context ranks, forward and backward, hidden or
        not.

        Backward gathers them again, and reduces their gradients: ours in float32, and with
        recomputation once more before; published runs' in the model's precision.
        """
        cp, model = self.layout.context, self.model
        if cp == 1:
            return 0.0, 0.0
        k = model.num_query_groups * model.head_dim
        moved = self.tokens * 2 * k * self.job.weight_bytes * (cp - 1) / self.layout.tensor
        once = moved / network.rate(cp, self.layout.tensor, self.cluster, self.c)
        if not self.job.gathers_keys:
            return once, 2 * once
        gradients = 4 / self.job.weight_bytes
        again = 1 if "layer" in self.job.recompute else 0
        return once, (1 + gradients + again) * once

    @property
    def context_shown(self) -> float:
        """The share that is not hidden: our attention waits for all keys before it begins."""
        return 1.0 if self.job.gathers_keys else float(self.c["context_exposed"])

    @property
    def load(self) -> float:
        """Rows that the busiest rank computes, in units of an even load."""
        if self.job.capacity:
            return self.job.capacity
        return 1.0 if self.job.force_balanced else float(self.c["imbalance"])

    @property
    def _exposed(self) -> float:
        return 1 - self.c["exchange_hidden"] if self.job.overlap_exchange else 1.0

    def _products(self, sparse: bool) -> tuple[float, float]:
        """Forward seconds of the matrices that every token uses, and of the experts."""
        matrices = self.model.attention_matrices
        matrices += self.model.expert_matrices if sparse else self.model.mlp_matrices
        dense = sum(self._dense(m) for m in matrices if not m.experts)
        return dense, sum(self._grouped(m) for m in matrices if m.experts)

    def _dense(self, matrix: Matrix) -> float:
        if matrix.inputs == 1:
            return 0.0
        if matrix.name == "router":
            return self.product(self.share, matrix.outputs, matrix.inputs, "fp32")
        outputs, inputs, tokens = float(matrix.outputs), float(matrix.inputs), self.tokens
        if matrix.cut == "outputs":
            outputs /= self.layout.tensor
        elif matrix.cut == "inputs":
            inputs /= self.layout.tensor
        else:
            tokens = self.share
        return self.product(tokens, outputs, inputs, self.job.precision)

    def _grouped(self, matrix: Matrix) -> float:
        """Seconds of all experts of this rank; each computes its share of the rows."""
        here = self.model.num_experts / self.layout.expert
        outputs, inputs = float(matrix.outputs), float(matrix.inputs)
        if matrix.cut == "outputs":
            outputs /= self.layout.expert_tensor
        else:
            inputs /= self.layout.expert_tensor
        one = self.product(self._expert_rows / here, outputs, inputs, self.job.precision)
        return here * one / self.c["grouped"]

    @property
    def _expert_rows(self) -> float:
        """Rows that this rank's experts compute, with even load."""
        return self.share * self.model.experts_per_token * self.layout.expert_tensor

    def _attention_seconds(self, layer: int) -> float:
        """Forward seconds: two products of S²/2 pairs, or of S · window."""
        model, job = self.model, self.job
        pairs = job.sequence_length / 2
        if model.has_window(layer):
            pairs = min(pairs, model.window)
        size = model.head_dim + model.latent_rope_dim / 2
        flops = 4 * pairs * self.tokens * size * model.num_attention_heads / self.layout.tensor
        reached = float(self.c[f"attention_{self.cluster.generation}"])
        reached *= job.sequence_length / (job.sequence_length + _SHORT_SEQUENCE)
        reached *= min(1.0, math.sqrt(size / _WIDE_HEAD))
        reached *= self.clocks
        if model.sinks:
            reached *= self.c["attention_sinks"]
        if job.fp8_attention:
            reached *= self.c["attention_fp8"]
        return flops / (self.cluster.peak_flops("bf16") * reached)

    def _elementwise(self, sparse: bool, load: float) -> float:
        """Forward seconds of norms, rotation, activation, permutation and casts, by bytes moved."""
        model, tp = self.model, self.layout.tensor
        h, width = model.hidden_size, float(self.job.weight_bytes)
        a = model.num_attention_heads * model.head_dim
        k = model.num_query_groups * model.head_dim
        # Two norms (read, write) and two residual additions (two reads, write); rotation and,
        # where there is one, the norm of queries and keys.
        moved = self.share * 10 * h * width
        moved += self.tokens / tp * (a + k) * (4 if model.qk_norm else 2) * width
        if sparse:
            experts = self._expert_elementwise(width) * load
            moved += self._cast * self.tokens * (h + a) / tp
            moved += self.share * model.num_experts * 16  # float32 scores, choices, maps
            return (moved + experts) / self.memory_rate
        gates = 3 if model.gated else 2
        moved += self.tokens / tp * gates * model.ffn_hidden_size * width
        moved += self._cast * self.tokens / tp * (2 * h + a + model.ffn_hidden_size)
        return moved / self.memory_rate

    def _expert_elementwise(self, width: float) -> float:
        """Bytes of permuting rows there and back, of the activation and of casts."""
        h, gates = self.model.hidden_size, 3 if self.model.gated else 2
        inner = self.model.expert_ffn_hidden_size / self.layout.expert_tensor
        # NCCL's exchange sorts rows by rank before and by expert after it, fused kernels once.
        sorts = 2 if self.job.dispatcher == "alltoall" and self.layout.expert > 1 else 1
        moved = (4 * h * sorts + gates * inner) * width + self._cast * (h + inner)
        kernels = "fused_experts" if self.job.fused_experts else "experts_elementwise"
        biased = self.c["expert_bias"] if self.model.expert_bias else 1.0
        return self._expert_rows * moved * self.c[kernels] * biased

    @property
    def _cast(self) -> int:
        """Bytes moved to bring one element to low precision, by rows and by columns."""
        return {"nvfp4": 6, "mxfp8": 4, "fp8": 4}.get(self.job.precision, 0)

    def _launch(self, sparse: bool) -> float:
        """Seconds in which the host launches both passes."""
        job, c = self.job, self.c
        if job.graphs == "full":
            return 0.0
        seconds = c["launch_mlp"]
        if sparse:
            seconds = c["launch_experts"] * (
                c["launch_alltoall"] if job.dispatcher == "alltoall" else 1.0
            )
            if job.capacity:
                seconds *= c["launch_capacity"]
            if self.model.expert_bias:
                seconds += c["launch_expert_bias"] * self.model.num_experts / self.layout.expert
        seconds += c["launch_attention"]
        applied = {
            "launch_unfused": sparse and not job.fused_permutation,
            "launch_overlap": job.overlap_exchange,
            "graph_partial": job.graphs == "partial",
            "launch_low_precision": self.is_low,
            "launch_grace": self.cluster.host == "grace",
            "launch_milan": self.cluster.host == "milan",
            "launch_efa": self._sends_over_efa,
        }
        for name, is_applied in applied.items():
            seconds *= c[name] if is_applied else 1.0
        return seconds

    @property
    def _sends_over_efa(self) -> bool:
        """Whether threads of the hosts send the data that leaves their nodes."""
        leaves = self.layout.world_size > self.cluster.nvlink_domain
        return leaves and self.cluster.network == "efa"

    def _recomputed(self, once: Pass, sparse: bool) -> Pass:
        """The work that backward computes again."""
        recompute, launch = self.job.recompute, self._launch(sparse)
        if "layer" in recompute:
            return once.plus(Pass(launch=launch / 3))
        if recompute & {"mlp", "moe"}:
            mlp = 0.0 if sparse else sum(map(self._dense, self.model.mlp_matrices))
            return Pass(
                gemm=mlp,
                experts=once.experts,
                elementwise=0.7 * once.elementwise,
                exchange=once.exchange,
                proxies=once.proxies,
                launch=launch / 4,
            )
        return Pass(
            gemm=0.3 * once.gemm if "mla_up_proj" in recompute else 0.0,
            attention=once.attention if "core_attn" in recompute else 0.0,
            elementwise=0.25 * once.elementwise if recompute else 0.0,
        )
