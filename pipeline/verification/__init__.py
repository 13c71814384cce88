"""Verifiers in bounded child processes: the pool, the guard, the child, the sandbox."""
