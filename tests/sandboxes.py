"""Skips tests of the sandbox where it cannot run, and says why: `with needs_sandbox(): …`.

Only a machine without bubblewrap, or one that forbids namespaces, is skipped: any other fault
of the sandbox is a failure.
"""

import contextlib
import functools
import shutil
import subprocess

import pytest


@contextlib.contextmanager
def needs_sandbox():
    if reason := _missing():
        pytest.skip(reason)
    yield


@functools.cache
def _missing():
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed: apt-get install bubblewrap"
    walls = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--ro-bind", "/", "/"]
    done = subprocess.run([*walls, "/bin/true"], capture_output=True, text=True)
    return f"this machine forbids sandboxes: {done.stderr.strip()}" if done.returncode else ""
