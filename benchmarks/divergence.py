"""A student's divergence from its teacher, forward and backward: seconds and memory of the ways.

    python benchmarks/divergence.py                                  # float32 on a CPU
    python benchmarks/divergence.py --positions 32768 --tile-mib 64 256 --rounds 2

From hidden states and output matrices of both, to the gradients of the student's: "plain" makes
both logits whole and leaves the rest to autograd; "log-probs" is the part that reinforcement
learning takes of the same student, one number of each position, and has no teacher. Every way lives
in a process of its own, and they take turns, as in benchmarks/logits.py, whose table this is.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from logits import Alone, in_turns, processor, resident, resident_from_now  # beside this file

BETAS = {"forward_kl": 0.0, "jensen_shannon": 0.5, "reverse_kl": 1.0}


def loss_of(way: str, divergence: str) -> Callable[..., Any]:
    """(hidden [T, H], weight [V, H], hidden and matrix of the teacher, labels [T]) -> a mean."""
    import torch

    from megatron_qwen3.model.divergence import compare
    from megatron_qwen3.model.logits import Logits
    from megatron_qwen3.model.tiles import TILE_BYTES
    from megatron_qwen3.posttrain.teachers.divergences import jensen_shannon

    beta = BETAS[divergence]
    if way == "plain":

        def plain(h: Any, w: Any, g: Any, m: Any, _: Any) -> Any:
            with torch.no_grad():
                log_p = (g @ m.t()).log_softmax(-1)
            return jensen_shannon((h @ w.t()).log_softmax(-1), log_p, beta).mean()

        return plain
    is_lone = way == "log-probs"
    tile_bytes = TILE_BYTES if is_lone else int(way.split()[-2]) << 20

    def ours(h: Any, w: Any, g: Any, m: Any, y: Any) -> Any:
        student = Logits(h.unsqueeze(1), w, Alone(), tile_bytes)
        if is_lone:
            return -student.scores(y.unsqueeze(1)).log_p.mean()
        teacher = Logits(g.unsqueeze(1), m, Alone())
        return compare(student, teacher, y.unsqueeze(1), beta, len(w)).divergence.mean()

    return ours


def side(way: str, args: argparse.Namespace, pipe: Connection) -> None:
    """Answers every message with seconds, processor's seconds, MiB and the loss of one pass."""
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    V = args.vocabulary
    student, teacher = (
        (torch.randn(args.positions, size), torch.randn(V, size) / size**0.5)
        for size in (args.hidden, args.teacher_hidden)
    )
    for x in student:
        x.requires_grad_()
        x.grad = torch.zeros_like(x)
    labels, loss = torch.randint(V, (args.positions,)), loss_of(way, args.divergence)
    while pipe.recv():
        before = resident_from_now()
        start, cpu_start = time.perf_counter(), time.process_time()
        value = loss(*student, *teacher, labels)
        value.backward()
        took = time.perf_counter() - start, time.process_time() - cpu_start
        pipe.send((*took, resident("VmHWM") - before, value.item()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--teacher-hidden", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=37984)
    parser.add_argument("--divergence", choices=list(BETAS), default="reverse_kl")
    parser.add_argument("--tile-mib", type=int, nargs="+", default=[256])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ways = ["plain", "log-probs", *(f"ours, tiles of {mib} MiB" for mib in args.tile_mib)]
    _, *rounds = in_turns(side, ways, args)  # the first warms up, and pays for pages
    print(f"{processor()}, {args.threads} thread(s), {args.positions} positions, {args.hidden} and")
    print(f"{args.teacher_hidden} wide, {args.vocabulary} columns, float32, {args.divergence}")
    print("| way | s | processor s | ratio | MiB | loss |\n|---|---|---|---|---|---|")
    for way in ways:
        clock, cpu, mib, loss = zip(*(answers[way] for answers in rounds), strict=True)
        ratio = statistics.median(answers[way][1] / answers["plain"][1] for answers in rounds)
        times = f"{min(clock):.2f} | {min(cpu):.2f} | {ratio:.2f}"
        print(f"| {way} | {times} | {max(mib):.0f} | {loss[0]:.5f} |")


if __name__ == "__main__":
    main()
