"""Evaluates models on tasks with verifiers: asks, verifies, counts.

tasks.py        the tasks: JSON lines with verifiers, generators of reasoning-gym
conditions.py   how they are asked: with thinking or without, with budgets, with changing flags
estimates.py    pass@k and intervals
evaluate.py     asks, verifies, counts
"""
