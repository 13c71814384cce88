"""The policy: model, teacher and optimizer, how it is opened, and its snapshots."""
