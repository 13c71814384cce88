"""Golden numbers: a second implementation of docs/method.md, and what it says about a run."""
