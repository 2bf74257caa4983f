"""A grid of pruned models: settings, tasks, records, and what the records say."""
