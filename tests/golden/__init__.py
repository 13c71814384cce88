"""Golden numbers: a second implementation of METHOD.md, and what it says about a run."""
