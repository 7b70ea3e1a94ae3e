"""How good a model is at tasks whose answers are verified: evaluate, the page, the numbers.

tasks.py        what is asked: JSON lines with verifiers, generators of reasoning-gym
conditions.py   how: thinking or not, with budgets, in dialogs whose flags change
estimates.py    pass@k and intervals
evaluate.py     ask, verify, count
"""
