"""Health of a run: rules over its records, and alarms with evidence from its tables."""
