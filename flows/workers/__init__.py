"""Work in other processes and on other machines: which workers, and what they are given."""
