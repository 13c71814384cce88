"""The study's small policy, and the script that makes it."""
