"""Rollouts: chooses tasks, samples answers while the model trains, and stores them."""
