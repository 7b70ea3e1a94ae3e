"""A training step in any layout: batches, losses, engine, optimizer, checkpoints, metrics."""
