"""Which mixture of text to train on, found out by small runs on many mixtures.

No torch. Read in this order:

    cells.py        the texts that shares are given to
    swarm.py        the mixtures that are tried
    regression.py   losses on mixtures: a law, and boosting
    optimum.py      the lowest of what they predict, under caps on epochs

`tools/optimize_mixture.py` is the command line.
"""
