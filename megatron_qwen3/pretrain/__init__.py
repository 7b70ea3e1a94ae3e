"""Pretraining: the data mixture, the curriculum and the loop."""
