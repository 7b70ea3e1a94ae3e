"""Explains a rank's failure, with settings to change. Nothing here imports torch.

if told := explain(error, config): ...
"""

import errno
import os
import socket
from dataclasses import replace

from megatron_qwen3 import validate_context
from megatron_qwen3.modes import belongs
from megatron_qwen3.parallel.layout import row_unit
from megatron_qwen3.settings import Config

_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
_NOT_DETERMINISTIC = "does not have a deterministic implementation"
_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_PEER_GONE = ("connection closed by peer", "connection reset by peer", "broken pipe")


def explain(error: BaseException, config: Config) -> str:
    """The failure and its remedies, as text; "" where the traceback explains it better."""
    told = _explain(error, config)
    return "\n".join([told, *getattr(error, "__notes__", ())]) if told else ""


def _explain(error: BaseException, config: Config) -> str:
    text = str(error)
    rank = f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}"
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _NO_MEMORY):
        first = next(iter(text.splitlines()), "")
        return f"{rank} is out of memory ({first}); remedies, in this order:\n{_less(config)}"
    if any(words in text.lower() for words in _PEER_GONE):
        return f"{rank} lost another rank, which died or was stopped: see that rank's message"
    if _NOT_DETERMINISTIC in text:
        first = next(iter(text.splitlines()))
        return f"{rank} cannot keep run.deterministic = true ({first}); without it the run goes on"
    if isinstance(error, OSError) and error.errno in _NO_PLACE:
        return f"{rank}: {error.filename or 'a file'}: {error.strerror}"
    return ""


def _less(config: Config) -> str:
    """Settings that lower the memory of a rank, cheapest first, as lines."""
    parallel, train = config.parallel, config.train
    advice = []
    if train.micro_batch > 1:
        advice.append(f"train.micro_batch={train.micro_batch // 2} (less at once, the same result)")
    if not config.optim.distributed:
        advice.append("optim.distributed=true (shares the optimizer's state over data ranks)")
    if parallel.recompute != "full":
        harder = "selective" if parallel.recompute == "none" else "full"
        advice.append(f"parallel.recompute={harder} (activations are computed again, not kept)")
    if config.checkpoint.asynchronous:
        advice.append("checkpoint.asynchronous=false (host memory: no copy while it is saved)")
    advice.append(
        f"parallel.tensor={2 * parallel.tensor} or parallel.pipeline="
        f"{2 * parallel.pipeline} (more ranks share the model)"
    )
    context = 2 * parallel.context
    more = replace(config, parallel=replace(parallel, context=context))
    unit, _ = row_unit(more.parallel, config.fp8)
    fits = config.data.sequence_length % unit == 0 and not any(validate_context.faults(more))
    if fits and not belongs("rollouts", config.run.mode):
        advice.append(f"parallel.context={context} (more ranks share each row)")
    if config.model.num_experts:
        advice.append(f"parallel.expert={2 * parallel.expert} (more ranks share the experts)")
    advice.append("mq3 memory … (memory of a rank, part by part)")
    return "\n".join(f"  {line}" for line in advice)
