"""Commands of `srpo` that look at saved runs; `flows.cli` registers them."""
