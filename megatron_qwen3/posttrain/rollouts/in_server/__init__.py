"""Modules that vLLM imports within its own processes; they import nothing of this package."""
