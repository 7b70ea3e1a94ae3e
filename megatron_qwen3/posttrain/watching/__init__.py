"""Summaries and samples of reinforcement learning and on-policy distillation; no torch."""
