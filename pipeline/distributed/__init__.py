"""Several ranks: the processes that share one policy, and how its weights are spread."""
