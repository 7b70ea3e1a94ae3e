"""Forward, score and generation of a tiny model on a pretended GPU; JSON of waits for it.

python tests/fake_cuda/passes.py tiny-moe train.precision=bf16
"""

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from machine import fake_gpu, pretend_one_gpu

pretend_one_gpu()

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_qwen3.config import load
from megatron_qwen3.cpu import redirect
from megatron_qwen3.generate.engine import Generator
from megatron_qwen3.generate.sampling import Sampling
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel import runtime
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.model import Model

SMALL = ("train.steps=1", "train.global_batch=2", "data.sequence_length=32")


def main(preset, *settings):
    assert not redirect.REDIRECTED, "the package must believe in the GPU"
    TokenBatch.beyond = lambda *_: 0  # ids without a value are none, and are asked on the host
    config = load([], [f"model.preset={preset}", *SMALL, "parallel.overlap=false", *settings])
    ranks = config.parallel.context  # of which the others are not there
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    layout, completions = Layout.of(config, ranks), []
    with fake_gpu() as waits:
        runtime.build_groups(config, layout)
        model = Model(config, layout)
        (chunk,) = model.chunks
        places = {str(tensor.device) for tensor in (*chunk.parameters(), *chunk.buffers())}
        ids = torch.randint(0, 100, (3, 33))
        plain = TokenBatch.of(ids[:, :-1], ids[:, 1:])
        score_BS = model.score(plain, log_probs)["log_prob"]
        documents = Stretches.of([[0, 5], [0], [0, 30, 31]], 32)
        packed = TokenBatch.of(ids[:, :-1], ids[:, 1:], documents)
        packed_BS = model.score(packed, log_probs)["log_prob"]
        in_score = dict(waits)
        waits.clear()
        if ranks == 1:  # text is generated where ranks have whole rows
            sampling = Sampling(temperature=0.6, top_k=20, top_p=0.95, presence_penalty=0.5)
            prompts = [[*range(20)], [*range(18)]]  # past a chunk of 16, where there are chunks
            completions = Generator(model).generate(prompts, sampling, 3, stop_ids=[7])
    print(
        json.dumps(
            {
                "weights on": sorted(places),
                "score": [str(score_BS.device), *score_BS.shape],
                "score of packed documents": [str(packed_BS.device), *packed_BS.shape],
                "waits in score": in_score,
                "waits in generation": dict(waits),
                "generated": [len(completion.tokens) for completion in completions],
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
