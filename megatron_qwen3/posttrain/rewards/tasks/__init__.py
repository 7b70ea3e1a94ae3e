"""Endless generators of tasks that come with the project: `kinds.task("code", 0, n)`."""
