"""Dialogs to train on, from queries and answers: cold start, fusion, distillation."""
