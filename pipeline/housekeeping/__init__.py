"""What happens to finished steps: pruning, archives, repair, and the room a run takes."""
