"""One-shot pruning of decoder language models: solvers, statistics, block access and the driver."""

# Of masks and weights of a pruned model. Whoever changes these numbers raises it: tests/test_golden.py.
VERSION = 1
