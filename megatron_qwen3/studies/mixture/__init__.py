"""Finds the mixture of text to train on, by small runs on many mixtures.

No torch. Read in this order:

    cells.py        the texts that shares are given to
    swarm.py        the mixtures that are tried
    regression.py   losses on mixtures: a law, and boosting
    optimum.py      the lowest loss that they predict, under caps on epochs
    study.py        a study's file, its corpus and its runs
    finding.py      losses of the runs, and how the mixture found compares
    result.py       the files: mixture.json, the recipe, proposed mixtures

`mq3 data optimize` is the command line.
"""
