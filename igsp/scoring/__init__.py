"""Scores of a model on tasks, and what a pruned model keeps of them."""

# Of scores of a model on a suite. Whoever changes these numbers raises it: tests/test_golden.py.
VERSION = 1
