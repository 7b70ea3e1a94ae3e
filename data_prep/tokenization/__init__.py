"""Documents become shards of tokens: shuffled, resumable, by any number of processes.

Read corpus.py (the run), plan.py (what it is made of), groups.py, work.py and spill.py (the
shuffle), in this order.
"""
