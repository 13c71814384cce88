"""Tasks: prompts, gold answers, verifiers, and the small data that ships with the project."""
