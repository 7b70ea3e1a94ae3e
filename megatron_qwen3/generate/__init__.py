"""Generates text with a model, also in training: key-value cache, sampling, thinking budget."""
