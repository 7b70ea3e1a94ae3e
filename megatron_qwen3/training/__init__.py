"""One training step in any layout: batches, losses, the engine, optimizer, checkpoints, metrics."""
