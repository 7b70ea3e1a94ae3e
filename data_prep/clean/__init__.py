"""Cleans a corpus on datatrove: read, label, filter, find duplicates, write; see stages.py."""
