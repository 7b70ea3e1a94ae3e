"""Will it fit, how fast, on how many GPUs, in which layout: answers before a GPU is there.

Pure arithmetic without torch. Read in this order:

    architecture.py  the matrices of a transformer: Qwen3's, and what published runs trained
    job.py           one training job: architecture, layout, batch, precision
    buffers.py       megatron-core's flat buffers, to the element
    state.py         weights, gradients and optimizer of one rank, to the byte

`tools/scaling_study.py` is the command line.
"""
