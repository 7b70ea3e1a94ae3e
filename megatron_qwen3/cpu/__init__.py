"""What depends on whether this process has a GPU: no module outside this package asks.

redirect   lets megatron-core run where torch sees none
allocator  keeps the memory that tensors free
device     the device of this rank and how its process groups talk
memory     of the device: how much there is, how full it is, how host memory is kept for it
clock      forward and backward passes, timed
kernels    which of torch's kernels there are for a tensor
products   matrix products by the faster of two libraries
norms      2-norms of gradients, exact to the last digits
shortcuts  passes over gradients that a training step on a CPU can do without
"""
