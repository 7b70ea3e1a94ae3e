"""Finds equal and nearly equal documents over all tasks, and drops all but the first of a group."""
