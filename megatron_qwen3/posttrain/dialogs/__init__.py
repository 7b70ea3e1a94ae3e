"""Dialogs: from JSON lines to tokenized samples on disk, with a mask of the trained tokens.

samples.py     of a line its samples, or the reason why it has none
encoder.py     many conversations to ids and masks
limits.py      drops or cuts samples that are too long
lines.py       a file as batches of lines
tokenizing.py  all of it, the work of `mq3 data dialogs`
dialog_set.py  samples on disk
"""
