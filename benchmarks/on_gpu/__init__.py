"""Parts of `benchmarks/gpu.py`, made of cases, each in a process that may crash or hang."""
