"""The process groups of one layout; a process may have several layouts.

    groups = ProcessGroups.make(layout, timeout)     # all ranks call it; the first is the run's
    with groups.current():                    # megatron-core's own variables have these groups
        ...

megatron-core takes a collection of groups nearly everywhere; elsewhere it reads `parallel_state`,
one set of variables for the whole process. So a model of another layout than the run's swaps these
while it is built and while it computes.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.parallel.mcore import ProcessGroupCollection, parallel_state


def _variables() -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(parallel_state).items()
        if name.startswith("_") and name.isupper()
    }


_NONE_YET = _variables()


@dataclass(frozen=True)
class ProcessGroups:
    """ranks: process groups under megatron-core's names (tp, pp, dp_cp, …)."""

    ranks: ProcessGroupCollection
    variables: Mapping[str, Any]

    @classmethod
    def make(cls, layout: Layout, timeout: timedelta) -> "ProcessGroups":
        """New groups of all ranks; they become megatron-core's own if it has none yet."""
        others = _variables() if parallel_state.model_parallel_is_initialized() else None
        vars(parallel_state).update(_NONE_YET)
        try:
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=layout.tensor,
                pipeline_model_parallel_size=layout.pipeline,
                virtual_pipeline_model_parallel_size=layout.virtual if layout.virtual > 1 else None,
                context_parallel_size=layout.context,
                expert_model_parallel_size=layout.expert,
                expert_tensor_parallel_size=layout.expert_tensor,
                create_gloo_process_groups=False,
                distributed_timeout_minutes=math.ceil(timeout.total_seconds() / 60),
            )
            return cls.of_run()
        finally:
            if others is not None:
                vars(parallel_state).update(others)

    @classmethod
    def of_run(cls) -> "ProcessGroups":
        """The run's groups, which megatron-core holds."""
        return cls(ProcessGroupCollection.use_mpu_process_groups(), _variables())

    @contextmanager
    def current(self) -> Iterator[None]:
        """Within, megatron-core uses these groups."""
        others = _variables()
        vars(parallel_state).update(self.variables)
        try:
            yield
        finally:
            vars(parallel_state).update(others)
