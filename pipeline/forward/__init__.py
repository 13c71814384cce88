"""Passes over saved tokens: packed rows, attention, logits by chunks, and distributions."""
