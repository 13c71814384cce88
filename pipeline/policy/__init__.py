"""The policy: model, teacher and optimizer, opening a model folder, and snapshots."""
