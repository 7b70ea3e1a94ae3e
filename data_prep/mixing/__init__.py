"""From an inventory of shards and a recipe to a curriculum: recipe.py, sampling.py, plan.py."""
