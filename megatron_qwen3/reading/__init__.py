"""Measures how well a model reads texts beyond its trained length."""
