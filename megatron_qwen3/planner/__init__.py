"""Will it fit, how fast, on how many GPUs, in which layout: answers before a GPU is there.

Pure arithmetic without torch. Read in this order:

    architecture.py  the matrices of a transformer: Qwen3's, and what published runs trained
    job.py           one training job: architecture, layout, batch, precision
    state.py         weights, gradients and optimizer of one rank, to the byte (buffers.py)
    activations.py   what the forward pass keeps; schedule.py: how often at once
    memory.py        all of it, part by part
    layer_time.py    seconds of a layer; network.py, hardware.py: on what
    step.py          seconds of a training step
    search.py        the layouts of a cluster, ranked; overlay.py: the settings that train one
    launch_check.py  what training asks before it starts; allocation.py: what a SLURM job asks
    published.py     published runs (recipes.py, published_memory.py)
    fit.py           sets the constants (calibration.py) from them; accuracy.py: how well it does

`tools/scaling_study.py` is the command line, README.md here explains the model and its figures.
"""
