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
    token_bytes = job.micro_batch_tokens / layout.tensor * model.hidden_size * 2.0
    top = model.experts_per_token
    domain, domains = _domains(job, cluster)
    if job.dispatcher == "alltoall":
        near, far = top * (domain - 1) / layout.expert, top * (1 - 1 / domains)
        share = c["exchange_alltoall"]
        far_share = share
        if cluster.network == "efa":
            far_share *= c["network_efa"] / c["network"]
    else:
        near, far = top * (domain - 1) / domain, _far_copies(job, cluster)
        share = far_share = c["exchange_fused"]
    near += top * (layout.expert_tensor - 1)  # rows go to all ranks that share an expert
    over_nvlink = token_bytes * near / (1e9 * cluster.nvlink_gb_per_s * share)
    over_network = token_bytes * far / (1e9 * cluster.network_gb_per_s * far_share)
    latency = 20e-6
    if far and cluster.network == "efa":
        latency = c["exchange_latency_efa"]
        if job.dispatcher != "alltoall":
            over_network = 0.0  # see proxy_seconds
    return max(over_nvlink, over_network) + latency


def proxy_seconds(job: Job, cluster: Cluster, c: Mapping[str, float]) -> float:
    """Seconds in which the host's threads send the tokens of fused kernels over EFA: they send each
    copy of a token by itself, and the host waits for the counts that come with them."""
    if cluster.network != "efa" or job.dispatcher == "alltoall":
        return 0.0
    tokens = job.micro_batch_tokens / job.layout.tensor
    copies = tokens * _far_copies(job, cluster)
    return copies / (cluster.network_gb_per_s * c[f"copies_efa_{job.proxy}"])


def _domains(job: Job, cluster: Cluster) -> tuple[int, float]:
    """(expert ranks of an NVLink domain, domains that the experts are spread over)."""
    stride = job.layout.expert_tensor  # ranks of one expert-tensor group are neighbours
    members = max(min(job.layout.expert, cluster.nvlink_domain // stride), 1)
    return members, job.layout.expert / members


def _far_copies(job: Job, cluster: Cluster) -> float:
    """Copies of a token that leave its domain by fused kernels: one to each other domain."""
    model, (_, domains) = job.model, _domains(job, cluster)
    reached = domains * (1 - (1 - 1 / domains) ** model.experts_per_token)
    if model.routed_groups:
        reached = min(reached, model.routed_groups)
    return reached * (1 - 1 / domains)
