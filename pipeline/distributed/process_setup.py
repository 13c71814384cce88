"""Process-wide settings: torch's threads, and keeping freed memory for the next tensor."""

import ctypes

import torch

from pipeline.distributed.ranks import together

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


def configure_process(threads: int) -> None:
    """Set torch's CPU threads on every rank, and have freed memory kept for the next tensor.

    glibc returns large freed blocks to the system, and the next tensor of the same size faults in
    every page again: measured, a tenth of an update's CPU time. Without glibc only the threads are
    set.
    """
    together(_configure, None, threads)


def _configure(_: None, threads: int) -> None:
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
