"""Reading saved runs: lists, whole rollouts, checks, differences. Needs no model and no GPU."""
