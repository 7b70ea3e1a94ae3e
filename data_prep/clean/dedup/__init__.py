"""Equal and nearly equal documents: found over all tasks, all but the first of a group dropped."""
