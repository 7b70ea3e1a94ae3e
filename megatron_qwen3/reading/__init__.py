"""How well a model reads texts that are longer than those it was trained with."""
