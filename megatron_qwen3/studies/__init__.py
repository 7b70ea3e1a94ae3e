"""Studies of many runs: how training scales over GPUs, and the losses of larger runs.

No torch; runs are started as processes and read back from their metrics. Read in this order:

    files.py         study files, strictly read
    local.py         points run on this machine, resumable, with the time left
    slurm.py         points as job arrays

    sweep.py         models × layouts × GPU counts         ladder.py        sizes × tokens × rates
    efficiency.py    weak and strong scaling, cost         measurements.py  N, D, L, C of runs
                                                           parametric.py    L = E + A/N^α + B/D^β
                                                           isoflop.py       best size per compute
                                                           tuning.py        best rate and batch
                                                           laws.py          all of it, per stage

`mq3 study sweep | laws` are the command lines.
"""
