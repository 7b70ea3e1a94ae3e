"""Checks a run against the machines of a SLURM job, before the job waits in a queue.

    allocation = Allocation(nodes=4, gpus_per_node=8, nvlink_domain=8, gpu=hardware.load("h100"),
                            time_limit_seconds=86_400, save_seconds=600)
    faults(config, allocation)     why the job would fail or lose its work
    advice(config, allocation)     settings that work, but cost time

Memory and step times are the planner's. Checkpoints are taken to be written at 1 GB/s per node.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_qwen3.config import Config
from megatron_qwen3.model.flops import parameter_count
from megatron_qwen3.modes import belongs
from megatron_qwen3.parallel.layout import Layout, world_size_faults
from megatron_qwen3.planner import calibration
from megatron_qwen3.planner.hardware import COMPUTE_CAPABILITY, Cluster
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.launch_check import Device, memory_fault
from megatron_qwen3.planner.state import State
from megatron_qwen3.planner.step import Step
from megatron_qwen3.validate import gpu_faults
from megatron_qwen3.validate_fp8 import chip_faults
from megatron_qwen3.validate_overlap import chip_has_multicast, cpu_faults, multicast_faults

WRITTEN_BYTES_PER_NODE_SECOND = 1e9
_MEMORY_OPTION = "--gpu-memory-utilization"  # of vllm serve
SAVED_BYTES_PER_PARAMETER = 14  # bf16 weight; fp32 weight and Adam's two moments


@dataclass(frozen=True)
class Allocation:
    """The machines and time of a job.

    nvlink_domain        GPUs that NVLink joins: those of a node, or of a rack
    server_nodes         the last nodes, which have servers of vLLM and no ranks
    node_servers         servers of each of those nodes
    gpu                  None where ranks are on CPUs: memory and steps are not checked then
    time_limit_seconds   0: no limit
    save_seconds         between the signal to save and the time limit
    """

    nodes: int
    gpus_per_node: int
    nvlink_domain: int
    gpu: Cluster | None
    time_limit_seconds: int
    save_seconds: int
    server_nodes: int = 0
    node_servers: int = 1

    @property
    def rank_nodes(self) -> int:
        """Nodes that have ranks."""
        return self.nodes - self.server_nodes

    @property
    def world_size(self) -> int:
        """Ranks of the run, one per GPU of these nodes."""
        return self.rank_nodes * self.gpus_per_node


def faults(config: Config, allocation: Allocation) -> list[str]:
    """One line for each reason for which the job would fail, or lose its work."""
    if wrong := list(_server_faults(config, allocation)) or list(_size_faults(config, allocation)):
        return wrong
    if unable := list(_chip_faults(config, allocation)):
        return unable
    return [
        *(gpu_faults(config) if allocation.gpu else ()),
        *_domain_faults(config, allocation),
        *_memory_faults(config, allocation),
        *_time_faults(config, allocation),
    ]


def advice(config: Config, allocation: Allocation) -> list[str]:
    """One line for each setting that works but costs time."""
    p, domain = config.parallel, allocation.nvlink_domain
    experts, rows = p.expert * p.expert_tensor, p.tensor * p.context
    found = []
    if config.overlap.experts and Layout.of(config, allocation.world_size).micro_batches == 1:
        found.append(
            "overlap.experts = true, and a rank has one micro-batch a step: there is no other one "
            "to be computed while its tokens travel"
        )
    if domain % experts:
        found.append(
            f"parallel.expert * expert_tensor = {experts} does not divide the {domain} GPUs that "
            "NVLink joins (--nvlink-domain): tokens go to their experts over the network"
        )
    if p.context > 1 and domain % rows:
        found.append(
            f"parallel.tensor * context = {rows} does not divide the {domain} GPUs that NVLink "
            "joins (--nvlink-domain): keys and values of every layer go over the network"
        )
    return found


def step_seconds(config: Config, allocation: Allocation) -> float:
    """The planner's estimate of a step; 0.0 on CPUs, and where answers are sampled, whose lengths
    are unknown beforehand."""
    if not allocation.gpu or belongs("rollouts", config.run.mode):
        return 0.0
    job = Job.of(config, allocation.world_size)
    return Step.of(job, allocation.gpu, calibration.load()).seconds


def saving_seconds(config: Config, allocation: Allocation) -> float:
    """Estimated seconds to write a checkpoint."""
    saved_bytes = parameter_count(config.model) * SAVED_BYTES_PER_PARAMETER
    return saved_bytes / (allocation.rank_nodes * WRITTEN_BYTES_PER_NODE_SECOND)


def state_bytes(config: Config, world_size: int) -> int:
    """Bytes of weights, gradients and optimizer on the fullest rank, without activations."""
    job = Job.of(config, world_size)
    states = (State.of(job, rank) for rank in range(job.layout.pipeline))
    return max(s.weight_bytes + s.gradient_bytes + s.optimizer_bytes for s in states)


def _server_faults(config: Config, allocation: Allocation) -> Iterator[str]:
    """Faults of vLLM servers: their nodes, and whether the run uses them."""
    nodes, rollouts = allocation.server_nodes, config.rollouts
    samples = belongs("rollouts", config.run.mode)
    is_vllm = samples and rollouts.engine == "vllm"
    if nodes and not samples:
        yield (
            f"--server-nodes {nodes} serve models that sample answers, which run.mode = "
            f'"{config.run.mode}" does not; leave it out'
        )
    elif nodes and not is_vllm:
        yield (
            f'--server-nodes {nodes} and rollouts.engine = "{rollouts.engine}", which samples by '
            "the weights of the ranks; set rollouts.engine=vllm, or leave the nodes to the ranks"
        )
    elif nodes and rollouts.vllm.urls:
        yield (
            f"--server-nodes {nodes} starts servers, and rollouts.vllm.urls = "
            f"{list(rollouts.vllm.urls)} names others; leave one out"
        )
    elif nodes and nodes >= allocation.nodes:
        yield f"--server-nodes {nodes} leaves none of --nodes {allocation.nodes} to the ranks"
    elif nodes and allocation.gpu and allocation.gpus_per_node % allocation.node_servers:
        yield (
            f"--node-servers {allocation.node_servers} does not divide the "
            f"{allocation.gpus_per_node} GPUs of a node; valid: "
            f"{_divisors(allocation.gpus_per_node)}"
        )
    elif is_vllm and not nodes and not rollouts.vllm.urls and allocation.gpu:
        yield from _shared_gpu_faults(config)


def _shared_gpu_faults(config: Config) -> Iterator[str]:
    """Faults of servers that the run starts on its first node, where ranks use the GPUs."""
    settings = config.rollouts.vllm
    is_limited = settings.cache_bytes or any(
        option.startswith(_MEMORY_OPTION) for option in settings.options
    )
    if not (is_limited or settings.gpus):
        yield (
            'rollouts.engine = "vllm" without servers: those that the run starts share GPUs with '
            "ranks, and would take nine tenths of their memory; give servers nodes of their own "
            "(--server-nodes 1), or addresses (rollouts.vllm.urls), or GPUs without ranks "
            '(rollouts.vllm.gpus), or a limit (rollouts.vllm.options=["--gpu-memory-utilization='
            '0.3"])'
        )


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _size_faults(config: Config, allocation: Allocation) -> Iterator[str]:
    for fault in world_size_faults(config, allocation.world_size):
        near = " or ".join(map(str, _fitting_nodes(config, allocation))) or "none"
        kept = f", {allocation.server_nodes} of them for servers" if allocation.server_nodes else ""
        yield (
            f"--nodes {allocation.nodes} of {allocation.gpus_per_node} GPUs{kept}: {fault}; "
            f"--nodes that fit: {near}"
        )


def _fitting_nodes(config: Config, allocation: Allocation) -> list[int]:
    """The nearest numbers of nodes, below and above, for which layout and batch work."""

    kept, asked = allocation.server_nodes, allocation.nodes

    def fits(nodes: int) -> bool:
        return not any(world_size_faults(config, (nodes - kept) * allocation.gpus_per_node))

    below = next(filter(fits, range(asked - 1, kept, -1)), None)
    above = next(filter(fits, range(asked + 1, 2 * asked + 256)), None)
    return [nodes for nodes in (below, above) if nodes]


def _chip_faults(config: Config, allocation: Allocation) -> Iterator[str]:
    """Features that the GPU lacks, or settings for GPUs on nodes without any."""
    gpu, device = allocation.gpu, config.run.device
    if gpu and device != "cpu":
        name, capability = f"{gpu.name} (--gpu)", COMPUTE_CAPABILITY[gpu.generation]
        yield from chip_faults(config, name, capability)
        yield from multicast_faults(config, name, chip_has_multicast(capability))
        return
    none = 'run.device = "cpu" takes none' if gpu else "--gres none asks for none"
    if device == "cuda":
        yield f'run.device = "cuda" needs GPUs, and {none}; valid: auto, cpu'
    if config.fp8.is_on:
        yield f'fp8.recipe = "{config.fp8.recipe}" needs GPUs, and {none}; valid: "none"'
    elif config.model.kind == "te":
        yield f'model.kind = "te" needs GPUs, and {none}; valid: auto, torch'
    yield from cpu_faults(config, none)


def _domain_faults(config: Config, allocation: Allocation) -> Iterator[str]:
    tensor, domain = config.parallel.tensor, allocation.nvlink_domain
    if domain % tensor:
        yield (
            f"parallel.tensor = {tensor} does not divide the {domain} GPUs that NVLink joins "
            "(--nvlink-domain): its ranks exchange the activations of every layer, and a network "
            f"is too slow for that; valid: {_divisors(domain)}"
        )


def _memory_faults(config: Config, allocation: Allocation) -> Iterator[str]:
    """The planner's verdict, even where run.memory_check only warns: a queued failure costs
    more."""
    gpu = allocation.gpu
    if not gpu or config.run.memory_check == "off":
        return
    device = Device(f"a GPU ({gpu.name}, --gpu)", gpu.memory_bytes, is_gpu=True)
    if fault := memory_fault(config, allocation.world_size, device):
        yield f"{fault}; run.memory_check=off asks for it all the same"


def _time_faults(config: Config, allocation: Allocation) -> Iterator[str]:
    limit, lead = allocation.time_limit_seconds, allocation.save_seconds
    if not limit:
        return
    if limit <= lead:
        yield f"--time is {limit:,} s, and --save-seconds {lead:,} before its end the run must save"
        return
    margin = config.run.stop_early_seconds
    if limit <= margin:
        yield (
            f"--time is {limit:,} s, and run.stop_early_seconds = {margin:g} before its end the "
            "run saves and stops: each start would train one step"
        )
        return
    step, saving = step_seconds(config, allocation), saving_seconds(config, allocation)
    if step + saving > lead:
        yield (
            f"--save-seconds {lead:,}, between the signal to save and the time limit, is too "
            f"short: a step takes about {step:,.0f} s and a checkpoint {saving:,.0f} s; "
            f"valid: {2 * (step + saving):,.0f} or more"
        )
    every = config.checkpoint.every_steps or config.steps
    if every * step > limit:
        yield (
            f"checkpoint.every_steps = {config.checkpoint.every_steps} is about "
            f"{every * step / 3600:,.1f} h on {allocation.world_size} GPUs, and --time is "
            f"{limit / 3600:,.1f} h: a run that dies would lose all of it; "
            f"valid: {max(1, int(limit / step / 4)):,} or less"
        )
