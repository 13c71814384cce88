"""Tests, laid out like the folders they test; `flows` holds whole runs."""
