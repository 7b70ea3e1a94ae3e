"""Runs programs that a model wrote, isolated from the machine.

    with Sandbox(ProgramLimits(seconds=10), workers=4) as sandbox:
        outcome = sandbox.run("print(int(input()) + 1)", "41")
    outcome.stdout      # "42\\n"; outcome.status 0, outcome.killed_by "", outcome.failure ""

Each program is a process of its own in namespaces of its own (bubblewrap), as user nobody: without
network, with a read-only root that contains /usr and the interpreter, and nothing else of the
machine. README.md lists the walls and how each is made. Entering a Sandbox tests the walls and
raises ConfigError where one does not hold: no program ever runs without them. `Examination` runs
tests of functions in a sandbox beside the program's. torch is not imported.
"""

from megatron_qwen3.posttrain.sandbox.limits import ProgramLimits, ProgramOutcome
from megatron_qwen3.posttrain.sandbox.pool import Sandbox

__all__ = ["ProgramLimits", "ProgramOutcome", "Sandbox"]
