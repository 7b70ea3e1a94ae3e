"""Everything that depends on whether this process has a GPU: no other module asks.

redirect   lets megatron-core run where torch sees none
allocator  keeps the memory that tensors free
device     the device of this rank, and the backend of its process groups
memory     of the device: size and use; host copies of its tensors
clock      forward and backward passes, timed
kernels    which of torch's kernels exist for a tensor
products   matrix products by the faster of two libraries
norms      2-norms of gradients, exact to the last digits
shortcuts  passes over gradients that a training step on a CPU can do without
"""
