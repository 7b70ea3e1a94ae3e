"""What people see of reinforcement learning and on-policy distillation; no torch."""
