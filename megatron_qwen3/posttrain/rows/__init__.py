"""Training on rows that tokenized samples share, of dialogs (sft.py) or of pairs (reward.py).

packing.py                            samples to rows by best fit
dialog_mixture.py, pair_mixture.py    which samples of which sources, trained or held out
dialog_rows.py, pair_rows.py          rows as arrays of a batch
soft_targets.py, stored_targets.py    a teacher's probabilities beside them
bradley_terry.py                      the loss of pairs
held_out_loss.py, held_out_pairs.py   losses of what is held out
row_loop.py, row_order.py             the loop, and what decided a run's rows
"""
