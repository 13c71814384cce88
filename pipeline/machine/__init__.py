"""The machine under a run: free disk, memory, time by phase, operations counted."""
