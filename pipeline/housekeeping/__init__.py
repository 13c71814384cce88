"""What happens to finished steps: pruning, archives, repair, and the disk space of a run."""
