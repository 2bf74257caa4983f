"""One-shot pruning of decoder language models: solvers, statistics, block access and the driver."""
