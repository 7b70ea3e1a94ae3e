"""Tokenizes documents into shards: shuffled, resumable, by any number of processes.

Read corpus.py (the run), plan.py (its parts), groups.py, work.py and spill.py (the
shuffle), in this order.
"""
