"""Training: the loop, its flow, what watches it, and what it prints."""
