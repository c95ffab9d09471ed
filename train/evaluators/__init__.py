"""Evaluators: one module per kind of task, one contract."""
