"""The commands of `study` (`cli/scaling_study.py`), one module each."""
