"""A command that may not outlive who started it: `python leash.py PARENT FOLDER COMMAND…`.

vLLM's server is three processes or more, of which the others live on when one is killed, and keep
their memory. So they run in a session of their own whose leader is this script: when the command
ends, or the process PARENT has gone, however it went, the whole session is killed. FOLDER, which
holds weights in memory, then goes with PARENT.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

POLL_SECONDS = 0.2


def main(parent: int, folder: str, command: list[str]) -> None:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while child.poll() is None and os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    if os.getppid() != parent:
        shutil.rmtree(folder, ignore_errors=True)
        os.write(2, b"== was left by who started it\n")
    else:
        os.write(2, b"== ended with status %d\n" % child.returncode)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
