"""Runs whose root is a URL: their mirrors on this machine, and the object store behind them."""
