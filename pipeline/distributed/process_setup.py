"""How the process computes: its threads, and what becomes of memory that it frees."""

import ctypes

import torch

from pipeline.distributed.ranks import together

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


def configure_process(threads: int) -> None:
    """Set torch's CPU threads on every rank, and have freed memory kept for the next tensor.

    glibc gives large blocks back to the system when they are freed, and the next tensor of the
    same size waits for every page anew: measured, a tenth of an update's CPU time. Where there is
    no glibc, nothing changes but the threads.
    """
    together(_configure, None, threads)


def _configure(_: None, threads: int) -> None:
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
