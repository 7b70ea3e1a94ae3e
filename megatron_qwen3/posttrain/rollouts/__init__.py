"""Answers that a model samples while it trains: what is asked, what samples, how they are kept."""
