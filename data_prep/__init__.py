"""Prepares text for training: tokenization, and the token files of a training. No torch."""
