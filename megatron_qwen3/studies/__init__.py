"""Studies around a training: what its ranks would hold, how it scales, what its loss would be."""
