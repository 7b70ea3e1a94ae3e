"""The cost of a program in the sandbox: `python benchmarks/sandbox.py [--programs 50] [--workers
2]`

Prints seconds to try the walls, and seconds a program, one after another and at once. A program
prints a number; each is another one, so that none is remembered.
"""

import argparse
import time

from megatron_qwen3.posttrain.sandbox import Sandbox


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    started = time.perf_counter()
    with Sandbox(workers=given.workers) as sandbox:
        print(f"walls tried in {time.perf_counter() - started:.2f} s")
        alone = [f"print({k})" for k in range(given.programs)]
        started = time.perf_counter()
        for program in alone:
            sandbox.run(program)
        print(f"one after another: {_each(started, given.programs)} ms a program")
        started = time.perf_counter()
        sandbox.run_all([(f"print({k}, 'again')", "") for k in range(given.programs)])
        print(f"{given.workers} at once: {_each(started, given.programs)} ms a program")


def _each(started: float, programs: int) -> str:
    return f"{1000 * (time.perf_counter() - started) / programs:.1f}"


if __name__ == "__main__":
    main()
