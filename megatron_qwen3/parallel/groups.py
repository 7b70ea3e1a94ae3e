"""The process groups of one layout, of which a process may have several.

    groups = ProcessGroups.make(layout, timeout)     # all ranks call it; the first is the run's
    with groups.current():                    # megatron-core's own questions get these answers
        ...

megatron-core takes a collection of groups nearly everywhere, and asks `parallel_state`, one set of
variables of the whole process, in the rest. So a model of another layout than the run's swaps them
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
    """ranks: by what they share, as megatron-core names it (tp, pp, dp_cp, …)."""

    ranks: ProcessGroupCollection
    variables: Mapping[str, Any]

    @classmethod
    def make(cls, layout: Layout, timeout: timedelta) -> "ProcessGroups":
        """New groups of all ranks; they become megatron-core's own where it has none yet."""
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
        """Those that megatron-core has: the run's."""
        return cls(ProcessGroupCollection.use_mpu_process_groups(), _variables())

    @contextmanager
    def current(self) -> Iterator[None]:
        """Within, megatron-core has these groups."""
        others = _variables()
        vars(parallel_state).update(self.variables)
        try:
            yield
        finally:
            vars(parallel_state).update(others)
