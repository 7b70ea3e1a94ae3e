"""Plans a curriculum from an inventory of shards and a recipe: recipe.py, sampling.py, plan.py."""
