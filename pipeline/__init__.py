"""The vocabulary and the machinery: configuration, schemas, store, stage contract, policy.

Axis legend, used in names of tensors everywhere:

    B rollouts of a micro-batch      G rollouts of a group (one prompt)
    T response tokens of a rollout   N flat response tokens of a micro-batch
    K kept logits                    V vocabulary                 D hidden size

Log-probabilities are natural logarithms and entropies are in nats.
"""
