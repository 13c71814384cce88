"""Reading saved rollouts: lists of them, one whole, the loss of each token. No model, no GPU."""
