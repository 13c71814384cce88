"""Seeds: every random choice comes from (run seed, purpose, step, index) and from nothing else."""

import hashlib

import numpy as np

_SPAN = 2**62


def derive_seed(run_seed: int, purpose: str, *indices: int) -> int:
    """Return a seed in [0, 2**62) that depends on all arguments and on nothing else."""
    text = "/".join([str(run_seed), purpose, *map(str, indices)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _SPAN


def permutation(run_seed: int, purpose: str, size: int, *indices: int) -> list[int]:
    """Return a seeded permutation of range(size)."""
    generator = np.random.Generator(np.random.Philox(derive_seed(run_seed, purpose, *indices)))
    return [int(i) for i in generator.permutation(size)]


def epoch_positions(run_seed: int, size: int, step: int, count: int) -> list[int]:
    """Return the `count` dataset positions of a step of a run of one task."""
    return stream_positions(run_seed, "epoch", size, step * count, count)


def stream_positions(run_seed: int, purpose: str, size: int, start: int, count: int) -> list[int]:
    """Return `count` dataset positions from `start` on.

    Questions come from one endless stream of seeded permutations, one per epoch; what an epoch
    leaves over opens the next step, so that no question is dropped or seen out of turn.
    """
    orders: dict[int, list[int]] = {}
    positions = []
    for index in range(start, start + count):
        epoch, offset = divmod(index, size)
        if epoch not in orders:
            orders[epoch] = permutation(run_seed, purpose, size, epoch)
        positions.append(orders[epoch][offset])
    return positions
