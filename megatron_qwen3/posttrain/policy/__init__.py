"""The mathematics of reinforcement learning: advantages, losses, importance, divergences, means."""
