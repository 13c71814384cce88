"""Sampling: what an engine is, and the one that is the policy itself."""
