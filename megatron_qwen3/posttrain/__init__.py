"""Post-training: supervised fine-tuning, reward models, RL, distillation, and their evaluation."""
