"""The demo policy: a tiny model with wrong habits, and the script that makes it."""
