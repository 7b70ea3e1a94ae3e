"""Programs that a model wrote, run where they can harm nothing.

    with Sandbox(ProgramLimits(seconds=10), workers=4) as sandbox:
        outcome = sandbox.run("print(int(input()) + 1)", "41")
    outcome.stdout      # "42\\n"; outcome.status 0, outcome.killed_by "", outcome.failure ""

Each program is a process of its own in namespaces of its own (bubblewrap), as nobody: without
network, with a root that nobody can write, with /usr and the interpreter to read, and nothing else
of the machine. README.md says what is closed, and how. Entering a Sandbox tries the walls and
refuses, with a ConfigError, where one does not hold: nothing is ever run without them.
`Examination` runs tests of functions in a sandbox beside the program's. torch is not imported.
"""

from megatron_qwen3.posttrain.sandbox.limits import ProgramLimits, ProgramOutcome
from megatron_qwen3.posttrain.sandbox.pool import Sandbox

__all__ = ["ProgramLimits", "ProgramOutcome", "Sandbox"]
