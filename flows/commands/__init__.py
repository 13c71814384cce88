"""Commands of `srpo`, one module each, and the options they share; `flows.cli` registers them."""
