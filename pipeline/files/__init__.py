"""Durable files: written whole or not at all, digested, and listed."""
