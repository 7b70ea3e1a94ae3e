"""Real wheels of Transformer Engine on a machine without a GPU: `make test-te`.

While they are made, its modules ask no more of a GPU than whether there is one: on torch's meta
device all of them can be made, by its own compiled libraries. Nothing can be computed.

These tests have an environment of their own, and in others are not collected. The order counts:
megatron-core looks for Transformer Engine while it is imported, and the redirection to the CPU must
see no GPU, which everything after it believes in.
"""

from importlib import metadata

try:
    metadata.version("transformer_engine_torch")
except metadata.PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]
else:
    import torch  # noqa: F401  (whose libraries the next one loads)
    import transformer_engine.pytorch  # noqa: F401

    from megatron_qwen3.cpu import redirect
    from tests.te.stand_in import pretend_one_gpu

    assert redirect.REDIRECTED, "make test-te is for machines without a GPU"
    pretend_one_gpu()
