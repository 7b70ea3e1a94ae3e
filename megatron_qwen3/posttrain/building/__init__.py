"""Builds training dialogs from queries and answers: cold start, fusion, distillation."""
