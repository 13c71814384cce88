"""Prefect's server: whose it is, how it is called, and when it ends."""
