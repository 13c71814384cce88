"""Work on other processes and machines: where it may run, and what is spread."""
