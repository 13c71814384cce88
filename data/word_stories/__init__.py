"""Stories for the task `word_problems`: calculations drawn from a hash, and their telling."""
