"""A supervised start from a task's own worked solutions: examples, the gradient, the work."""
