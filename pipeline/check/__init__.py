"""`srpo check`: digests, keys, order and every invariant of a run's tables."""
