"""What commands print: tables, one rollout, the machine's report, progress bars."""
