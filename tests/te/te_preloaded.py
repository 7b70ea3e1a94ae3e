"""Imports the modules of ranks with Transformer Engine before the fork, in the order that works.

Transformer Engine comes before megatron-core, which looks for it, and the CPU's redirection, which
must not see a GPU, before one is pretended.
"""

import gc
import sys

from tests.te.te_ranks import PACKAGES

sys.path.append(str(PACKAGES))  # last: packages of the environment itself come first

from tests.te import stand_in

stand_in.install()

from megatron_qwen3.cpu import redirect

assert redirect.REDIRECTED, "these tests are for a machine without a GPU"
stand_in.pretend_one_gpu()

import tests.preloaded  # noqa: F401

gc.freeze()
