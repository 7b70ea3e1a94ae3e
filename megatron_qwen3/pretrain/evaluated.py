"""The sources that results on held-out text are of: `evaluated(mixture, config)`. No torch here."""

from data_prep import curriculum
from megatron_qwen3.config import Config
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.record import Feed, RunPart, Start


def evaluated(mixture: Mixture, config: Config) -> Mixture:
    """What results are of: `mixture`, or with eval.by also what its stage reads nothing of."""
    if not config.eval.by:
        return mixture
    stage = curriculum.read(config.data.curriculum).stage(config.data.stage, config.data.curriculum)
    feeds = tuple(Feed(share.source, 1, Start(0)) for share in stage.shares)
    part = mixture.part
    return Mixture(RunPart(0, part.global_batch, part.sequence_length, None, feeds))
