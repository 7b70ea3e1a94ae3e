"""What vLLM imports within its own processes, with none of this package around it."""
