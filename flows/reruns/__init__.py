"""Work over saved tables: replays, evaluations and deep checks."""
