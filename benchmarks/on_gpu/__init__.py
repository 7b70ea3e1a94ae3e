"""What `benchmarks/gpu.py` runs: parts made of cases, each in a process that may crash or hang."""
