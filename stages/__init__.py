"""The stages of SRPO: generate, verify, route, weigh, update and evaluate."""
