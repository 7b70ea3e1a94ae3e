"""Parallelism: `layout.py` computes the sizes of groups, `runtime.py` sets them up."""
