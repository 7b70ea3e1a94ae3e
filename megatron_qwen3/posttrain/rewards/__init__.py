"""Rewards of answers: parts, weights and their sum; README.md explains how parts are mixed.

rewards.py        parts and their weighted sum, for the first rank
weights.py        of the run, of a source, of a task
judge.py          another model that has a right answer or a checklist
reward_model.py   a model without reference, on all ranks; model_settings.py: its settings
scoring.py        its scores of answers in JSON lines, which answer_lines.py reads
form.py           thinking, mode, language
tasks/            kinds of tasks that come with the project
hacking.py        signs that a policy learned to collect rewards without answering better
"""
