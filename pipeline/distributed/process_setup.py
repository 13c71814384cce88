"""Process-wide settings: torch's threads, what is kept of freed memory, of compiled products."""

import ctypes
import os

import torch

from pipeline.distributed.ranks import together

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1
_COMPILED = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""How many products oneDNN, and torch where it calls it, keep compiled; read at the first one."""
_KEPT = "64"
"""In bfloat16 on a CPU, a product of any new shape is compiled, and kept with its working memory.

That of the output projection is as large as the projection (57 MB for SmolLM2), and 1024 products
would be kept. A pass needs some 25, with adapters some 40, the same in every layer.
"""


def configure_process(threads: int) -> None:
    """Set torch's CPU threads on every rank, have freed memory kept, and bound what oneDNN keeps.

    Call it before anything is computed.

    glibc returns large freed blocks to the system, and the next tensor of the same size faults in
    every page again: measured, a tenth of an update's CPU time. Without glibc only the threads are
    set.
    """
    together(_configure, None, threads)


def _configure(_: None, threads: int) -> None:
    for name in _COMPILED:
        os.environ.setdefault(name, _KEPT)
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
