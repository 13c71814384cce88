"""Stages: the contract, the one runner, and columns that several stages share."""
