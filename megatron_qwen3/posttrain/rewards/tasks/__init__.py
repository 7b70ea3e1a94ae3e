"""Kinds of tasks that come with the project, each an endless supply: `kinds.task("code", 0, n)`."""
