"""Checkpoints as files: folders, checksums, the torch_dist format; independent of the model."""
