"""The vocabulary and the machinery: configuration, schemas, store, stage contract, policy.

Axes, which names of tensors end in (`logits_NV` is [N, V]); docs/glossary.md has all of them:

    B rollouts of a batch            G rollouts of a group (one prompt)
    P distinct prompts of a batch    L positions of a row, prompts included
    T response tokens of a rollout   S positions of keys, which queries see or not
    N response tokens of many rollouts, flat; n: a block of them; M: those with a teacher
    K kept ids                       C buckets: the K kept ids, and the tail
    V vocabulary                     D hidden size

Log-probabilities are natural logarithms and entropies are in nats.
"""
