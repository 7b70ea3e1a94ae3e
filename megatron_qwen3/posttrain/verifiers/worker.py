"""A worker process: reads jobs from standard input, writes verdicts to standard output.

A job is a line of JSON, [spec, text]. The answer is `ready`, once what the kind needs is imported,
and then a line of JSON, [score, reason]. Started by pool.py, which kills it where it hangs; where
the parent is gone, it ends by itself.

    python -P -m megatron_qwen3.posttrain.verifiers.worker SECONDS
"""

from __future__ import annotations

import json
import os
import queue
import resource
import sys
import threading
from typing import IO

from megatron_qwen3 import entry
from megatron_qwen3.posttrain.verifiers.kinds import prepare, verdict

_MEMORY_BYTES = 4 << 30  # what grows beyond is an error, and not the machine's end
_RECURSION = 20_000  # calls: brackets within brackets are parsed by calls within calls


def main() -> int:
    jobs: queue.Queue[bytes] = queue.Queue()
    seconds = int(float(sys.argv[1])) + 1
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no verdict
    _set_limit(resource.RLIMIT_DATA, _MEMORY_BYTES)
    _set_limit(resource.RLIMIT_CORE, 0)
    sys.setrecursionlimit(_RECURSION)
    threading.Thread(target=_read, args=(sys.stdin.buffer, jobs), daemon=True).start()
    while True:
        _serve(jobs.get(), out, seconds)


def _read(source: IO[bytes], jobs: queue.Queue[bytes]) -> None:
    """Pass jobs on; the end of them ends the process, whatever it does."""
    for line in source:
        jobs.put(line)
    os._exit(0)


def _serve(job: bytes, out: IO[bytes], seconds: int) -> None:
    spec, text = json.loads(job)
    _set_limit(resource.RLIMIT_CPU, -1)
    prepare(spec)
    _write(out, b"ready")
    # C code keeps the thread that watches the parent waiting; the kernel waits for nobody.
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _set_limit(resource.RLIMIT_CPU, int(used) + 2 * seconds)
    result = verdict(spec, text)
    _write(out, json.dumps([result.score, result.reason]).encode())


def _write(out: IO[bytes], line: bytes) -> None:
    out.write(line + b"\n")
    out.flush()


def _set_limit(what: int, value: int) -> None:
    """value: -1 for the most that is allowed."""
    _, most = resource.getrlimit(what)
    ours = most if value < 0 else value if most < 0 else min(value, most)
    resource.setrlimit(what, (ours, most))


if __name__ == "__main__":
    entry.run(main)
