"""Scores of a model on tasks, and what a pruned model keeps of them."""
