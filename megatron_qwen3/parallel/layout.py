"""The sizes of all parallel groups, from configuration and world size.

    layout = Layout.of(config, world_size=64)

Pure arithmetic without torch, so that a laptop can plan a cluster; `runtime.py` builds the groups.
For attention the ranks of a pipeline stage are tensor * context * data, for the experts of a sparse
layer the same ranks are expert_tensor * expert * expert_data.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_qwen3.modes import belongs
from megatron_qwen3.settings import Config, ConfigError, ParallelConfig
from megatron_qwen3.settings_fp8 import LEAST_ROWS, UNITS, Fp8Config

_BF16 = Fp8Config()


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel groups.

    data             ranks that hold the same dense weights and train different samples
    expert_data      ranks that hold the same experts
    micro_batches    forward passes of one rank in one optimizer step
    stage_layers     layers of each pipeline stage in model order; chunk c of pipeline rank r is
                     stage c * pipeline + r
    """

    world_size: int
    tensor: int
    pipeline: int
    virtual: int
    expert: int
    expert_tensor: int
    context: int
    data: int
    expert_data: int
    micro_batches: int
    stage_layers: tuple[int, ...]

    @classmethod
    def of(cls, config: Config, world_size: int) -> "Layout":
        """The layout of a validated configuration; `ConfigError` if `world_size` does not fit."""
        check_world_size(config, world_size)
        p, train = config.parallel, config.train
        data = world_size // (p.tensor * p.pipeline * p.context)
        return cls(
            world_size=world_size,
            tensor=p.tensor,
            pipeline=p.pipeline,
            virtual=p.virtual_pipeline,
            expert=p.expert,
            expert_tensor=p.expert_tensor,
            context=p.context,
            data=data,
            expert_data=world_size // (p.expert * p.expert_tensor * p.pipeline),
            micro_batches=max(1, config.step_rows // (train.micro_batch * data)),
            stage_layers=p.pipeline_layers
            or even_stages(config.model.num_layers, p.pipeline * p.virtual_pipeline),
        )

    @property
    def data_ranks_share_experts(self) -> bool:
        """Whether the experts of a layer are split over several data ranks.

        Ranks are neighbours in both: a data rank's tensor ranks, and those that share all experts.
        """
        return self.tensor * self.context % (self.expert * self.expert_tensor) != 0

    def counts(self) -> dict[str, int]:
        """The sizes by name, without `stage_layers`."""
        sizes = dataclasses.asdict(self)
        del sizes["stage_layers"]
        return sizes


def row_unit(p: ParallelConfig, fp8: Fp8Config = _BF16) -> tuple[int, str]:
    """The factor that the length of a row must have, and the settings that require it.

    A row is cut into two pieces per context rank, and tensor ranks share each rank's part. Products
    in FP8 need a multiple of their unit, and tensor ranks that share rows a smaller one.
    """
    unit, settings = 1, []
    shares = p.tensor if p.sequence else 1
    if p.context > 1:
        unit, settings = 2 * p.context, [f"parallel.context = {p.context}"]
    if shares > 1:
        unit = math.lcm(unit, p.context * p.tensor)
        settings.append(f"parallel.tensor = {p.tensor} with parallel.sequence = true")
    if fp8.is_on:
        unit = math.lcm(unit, p.context * math.lcm(UNITS[fp8.recipe], LEAST_ROWS * shares))
        settings.append(f'fp8.recipe = "{fp8.recipe}"')
    return unit, " and ".join(settings)


def smallest_world(p: ParallelConfig) -> int:
    """The fewest ranks for this layout; every world size is a multiple of it."""
    return p.pipeline * math.lcm(p.tensor * p.context, p.expert * p.expert_tensor)


def even_stages(layers: int, stages: int) -> tuple[int, ...]:
    """`layers` over `stages` as even as possible; the ends get the fewer.

    The last stage, which also holds the logits, is relieved first, then the first stage with the
    embedding, then inwards: 7 layers over 4 stages are 2, 2, 2, 1, and 6 layers 1, 2, 2, 1.
    """
    fewer, longer = divmod(layers, stages)
    inwards = sorted(range(stages), key=lambda stage: (min(stage, stages - 1 - stage), -stage))
    short = set(inwards[: stages - longer])
    return tuple(fewer + (stage not in short) for stage in range(stages))


def check_world_size(config: Config, world_size: int) -> None:
    """ConfigError where the configuration's layout is impossible on `world_size` ranks."""
    if text := "\n".join(world_size_faults(config, world_size)):
        raise ConfigError(text)


def world_size_faults(config: Config, world_size: int) -> Iterator[str]:
    """Why the layout is impossible on `world_size` ranks, and possible numbers near it."""
    p = config.parallel
    dense = p.tensor * p.pipeline * p.context
    sparse = p.expert * p.expert_tensor * p.pipeline
    unit = math.lcm(dense, sparse)
    if world_size >= 1 and world_size % unit == 0:
        yield from _batch_faults(config, world_size // dense)
        return
    factors = f"{p.tensor} * {p.pipeline} * {p.context}"
    needs = f"parallel.tensor * pipeline * context = {factors} = {dense}"
    if dense % sparse:
        factors = f"{p.expert} * {p.expert_tensor} * {p.pipeline}"
        needs += f" and parallel.expert * expert_tensor * pipeline = {factors} = {sparse}"
    valid = near(world_size, unit)
    yield f"a world of {world_size} ranks is no multiple of {needs}; valid near it: {valid}"


def _batch_faults(config: Config, data: int) -> Iterator[str]:
    train, p = config.train, config.parallel
    if belongs("rollouts", config.run.mode):
        return  # the rollouts decide the number of rows of an update
    unit = train.micro_batch * data
    product = f"train.micro_batch * data parallel ranks = {train.micro_batch} * {data} = {unit}"
    if p.virtual_pipeline > 1:
        # The interleaved schedule hands micro-batches over in groups of the pipeline's size.
        product += f", times parallel.pipeline = {p.pipeline} (parallel.virtual_pipeline > 1)"
        unit *= p.pipeline
    if train.global_batch % unit:
        valid = near(train.global_batch, unit)
        yield (
            f"train.global_batch = {train.global_batch} is no multiple of {product}; "
            f"valid near it: {valid}"
        )


def near(value: int, unit: int) -> str:
    """The multiples of `unit` around `value`, as text."""
    below = value // unit * unit
    return ", ".join(str(n) for n in (below, below + unit) if n > 0)
