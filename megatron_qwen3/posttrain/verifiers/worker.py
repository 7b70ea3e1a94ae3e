"""A worker process: reads jobs from standard input, writes verdicts to standard output.

A job is a line of JSON, [spec, text]. The worker writes `ready` once the kind's modules are
imported, and then a line of JSON, [score, reason]. pool.py starts it, and kills it where it hangs;
it ends by itself when its parent is gone.

    python -P -m megatron_qwen3.posttrain.verifiers.worker SECONDS
"""

import json
import os
import queue
import resource
import sys
import threading
from typing import IO

from megatron_qwen3 import entry
from megatron_qwen3.posttrain.verifiers.kinds import prepare, verdict

_MEMORY_BYTES = 4 << 30  # beyond this a judgement fails, instead of the machine
_RECURSION = 20_000  # calls: parsers recurse into nested brackets


def main() -> int:
    jobs: queue.Queue[bytes] = queue.Queue()
    seconds = int(float(sys.argv[1])) + 1
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library's prints must not mix with verdicts
    _set_limit(resource.RLIMIT_DATA, _MEMORY_BYTES)
    _set_limit(resource.RLIMIT_CORE, 0)
    sys.setrecursionlimit(_RECURSION)
    threading.Thread(target=_read, args=(sys.stdin.buffer, jobs), daemon=True).start()
    while True:
        _serve(jobs.get(), out, seconds)


def _read(source: IO[bytes], jobs: queue.Queue[bytes]) -> None:
    """Pass jobs on; their end ends the process, whatever it does."""
    for line in source:
        jobs.put(line)
    os._exit(0)


def _serve(job: bytes, out: IO[bytes], seconds: int) -> None:
    spec, text = json.loads(job)
    _set_limit(resource.RLIMIT_CPU, -1)
    prepare(spec)
    _write(out, b"ready")
    # C code blocks the thread that watches the parent, but not the kernel's limit.
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _set_limit(resource.RLIMIT_CPU, int(used) + 2 * seconds)
    result = verdict(spec, text)
    _write(out, json.dumps([result.score, result.reason]).encode())


def _write(out: IO[bytes], line: bytes) -> None:
    out.write(line + b"\n")
    out.flush()


def _set_limit(what: int, value: int) -> None:
    """Set a limit of the process; value: -1 for the most allowed."""
    _, most = resource.getrlimit(what)
    ours = most if value < 0 else value if most < 0 else min(value, most)
    resource.setrlimit(what, (ours, most))


if __name__ == "__main__":
    entry.run(main)
