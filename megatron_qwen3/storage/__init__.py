"""Checkpoints as files: folders, checksums, the torch_dist format. Nothing here knows a model."""
