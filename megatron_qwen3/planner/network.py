"""Bytes per second between ranks, and the exchange of tokens between experts."""

from collections.abc import Mapping

from megatron_qwen3.planner.hardware import Cluster
from megatron_qwen3.planner.job import Job


def rate(ranks: int, stride: int, cluster: Cluster, c: Mapping[str, float]) -> float:
    """Bytes per second and rank of a ring over `ranks` ranks, each `stride` ranks from the next.

    Where the ring leaves the NVLink domain, its members there share their network ports: each
    crossing of the ring uses all of them.
    """
    members = max(min(ranks, cluster.nvlink_domain // stride), 1)
    over_nvlink = 1e9 * cluster.nvlink_gb_per_s * c["nvlink"]
    if members == ranks:
        return over_nvlink
    reached = c["network_efa"] if cluster.network == "efa" else c["network"]
    return min(over_nvlink, 1e9 * cluster.network_gb_per_s * reached * members)


def exchange_seconds(job: Job, cluster: Cluster, c: Mapping[str, float]) -> float:
    """Seconds of one exchange: every token to the ranks of its experts, or back.

    NCCL's all-to-all sends a copy per expert. Fused kernels (DeepEP; HybridEP) send one copy to
    each other domain that has some of the token's experts and spread it there over NVLink.
    """
    layout, model = job.layout, job.model
    stride = layout.expert_tensor  # ranks of one expert-tensor group are neighbours
    token_bytes = job.micro_batch_tokens / layout.tensor * model.hidden_size * 2.0
    top = model.experts_per_token
    domain = max(min(layout.expert, cluster.nvlink_domain // stride), 1)
    domains = layout.expert / domain
    if job.dispatcher == "alltoall":
        near, far = top * (domain - 1) / layout.expert, top * (1 - 1 / domains)
        share = c["exchange_alltoall"]
        far_share = share
        if cluster.network == "efa":
            far_share *= c["network_efa"] / c["network"]
    else:
        reached = domains * (1 - (1 - 1 / domains) ** top)  # domains that a token goes to
        if model.routed_groups:
            reached = min(reached, model.routed_groups)
        near, far = top * (domain - 1) / domain, reached * (1 - 1 / domains)
        share = c["exchange_fused"]
        far_share = c["exchange_efa_fused"] if cluster.network == "efa" else share
    near += top * (stride - 1)  # rows are gathered over the ranks that share an expert
    over_nvlink = token_bytes * near / (1e9 * cluster.nvlink_gb_per_s * share)
    over_network = token_bytes * far / (1e9 * cluster.network_gb_per_s * far_share)
    latency = c["exchange_latency_efa"] if far and cluster.network == "efa" else 20e-6
    return max(over_nvlink, over_network) + latency
