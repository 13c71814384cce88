"""A study: what its runs left behind in rows, and what follows from them."""
