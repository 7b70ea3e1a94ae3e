"""What an answer is rewarded for: README.md says how the parts are mixed.

rewards.py        parts and their weighted sum, for the first rank
weights.py        of the run, of a source, of a task
judge.py          another model that knows a right answer or a checklist
reward_model.py   one without reference, on all ranks; model_settings.py: what it is built with
form.py           thinking, mode, language
tasks/            kinds of tasks that come with the project
hacking.py        signs that a policy learned to be rewarded and not to answer
"""
