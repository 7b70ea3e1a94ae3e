"""Which mixture of text to train on, found out by small runs on many mixtures.

No torch. Read in this order:

    cells.py        the texts that shares are given to
    swarm.py        the mixtures that are tried
    regression.py   losses on mixtures: a law, and boosting
    optimum.py      the lowest of what they predict, under caps on epochs
    study.py        a study's file, its corpus and its runs
    finding.py      what the runs say, and how the mixture found compares
    result.py       what is left: mixture.json, the recipe, what was proposed

`tools/optimize_mixture.py` is the command line.
"""
