"""Making a study's runs, and making them anew: `python -m flows.study`."""
