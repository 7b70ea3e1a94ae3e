"""Predicts memory and speed of a run before a GPU is there, and searches layouts.

Pure arithmetic without torch. Read in this order:

    architecture.py  the matrices of a transformer, Qwen3 or another family of a published run
    job.py           one training job: architecture, layout, batch, precision
    state.py         weights, gradients and optimizer of one rank, to the byte (buffers.py)
    activations.py   tensors saved for backward; schedule.py: number of micro-batches in flight
    memory.py        all of it, part by part
    layer_time.py    seconds of a layer; network.py, hardware.py: the machine
    step.py          seconds of a training step
    candidates.py    the layouts that divide; quick.py: about how much memory and time they take
    search.py        the best of them, ranked; overlay.py: the settings that train one
    launch_check.py  the check before a run starts; allocation.py: the check of a SLURM job
    published.py     published runs (recipes.py, published_memory.py)
    fit.py           fits the constants (calibration.py) to them; accuracy.py: errors

`mq3 plan` is the command line, README.md here explains the model and its figures.
"""
