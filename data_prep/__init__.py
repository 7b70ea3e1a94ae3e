"""Preparing text for training: tokenization, and the token files trained on. No torch."""
