"""Text from the weights in training: a key-value cache, sampling and the thinking budget."""
